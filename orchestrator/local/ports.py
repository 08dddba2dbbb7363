"""Ports that nobody listens on, and that no other stack of this machine chooses either.

A server takes seconds from its choice of a port to listening on it. Meanwhile the stack holds the UDP port of
the same number on loopback: who asks second is refused by the kernel, its reach is exactly that of the TCP
port (this machine, this network namespace), and it is free again when its holder dies.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TRIED: Final = 200


@dataclass(frozen=True, slots=True)
class Reservation:
    """A port that no other stack chooses until this is closed."""

    port: int
    _holder: socket.socket

    def close(self) -> None:
        self._holder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reserve(preferred: int, *, hosts: Sequence[str] = ("127.0.0.1",)) -> Reservation:
    """`preferred`, or the next one above it that is free on all these addresses; 0 lets the system choose.

    A program that isn't ours may still take it before our server does: whoever starts one must be ready to
    reserve again. Raises Unavailable.
    """
    for port in _candidates(preferred, hosts[0]):
        holder = _hold(port)
        if holder is None:
            continue
        if all(is_free(port, host=host) for host in hosts):
            return Reservation(port, holder)
        holder.close()
    raise Unavailable(
        "no-free-port",
        f"None of the ports {preferred} to {preferred + _TRIED - 1} is free on {' and '.join(hosts)}."
        if preferred
        else f"The system has no free port on {' and '.join(hosts)}.",
        "Stop what listens there, or choose another with --port.",
    )


def choose(preferred: int, *, hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """As `reserve`, for a moment only."""
    with reserve(preferred, hosts=hosts) as reservation:
        return reservation.port


def _candidates(preferred: int, host: str) -> Iterator[int]:
    for attempt in range(_TRIED):
        port = preferred + attempt if preferred else _bound(host, 0)
        if port < 65536:  # noqa: PLR2004 - as many as there are
            yield port


def _hold(port: int) -> socket.socket | None:
    holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        holder.bind(("127.0.0.1", port))
    except OSError as error:
        holder.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            return None
        raise
    return holder


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """True when a server could listen there now."""
    try:
        _bound(host, port)
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            return False
        raise
    return True


def _bound(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        chosen: int = probe.getsockname()[1]
        return chosen
