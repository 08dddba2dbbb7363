"""Ports that nobody listens on."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

_TRIED: Final = 200


def choose(preferred: int, *, hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """`preferred`, or the next one above it that is free on all these addresses; 0 lets the system choose.

    Another process may take it before ours does: whoever starts a server on it must be ready to choose again.
    """
    if preferred == 0:
        return _bound(hosts[0], 0)
    for port in range(preferred, min(preferred + _TRIED, 65536)):
        if all(is_free(port, host=host) for host in hosts):
            return port
    raise Unavailable(
        "no-free-port",
        f"None of the ports {preferred} to {preferred + _TRIED - 1} is free on {' and '.join(hosts)}.",
        "Stop what listens there, or choose another with --port.",
    )


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
