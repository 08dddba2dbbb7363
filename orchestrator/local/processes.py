"""Which process is which, and how it is made to end: by pid *and* start time, never by name.

On Linux the facts are read from /proc; elsewhere from `ps`, which knows no environment, so that `marked`
finds nothing there and the recorded processes with their descendants have to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARK: Final = "ORCHESTRATOR_STACK"
"""The environment variable that every process of a stack inherits; its value is that stack's random id."""

_PROC: Final = Path("/proc")
_LINUX: Final = sys.platform == "linux"
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that can't be taken for a later one with the same pid. `started` is opaque."""

    pid: int
    started: str


def identify(pid: int) -> Identity | None:
    """Who has this pid now; None for nobody and for a zombie."""
    if not _LINUX:
        return next((Identity(pid, started) for one, _, started in _listed() if one == pid), None)
    try:
        fields = _stat(pid)
    except (OSError, IndexError):
        return None
    if fields[0] in {"Z", "X"}:
        return None
    return Identity(pid, f"{_boot()}/{fields[19]}")


def alive(identity: Identity) -> bool:
    return identify(identity.pid) == identity


def family(pids: Iterable[int]) -> frozenset[Identity]:
    """These processes and all that descend from them, as far as their parents still live."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    open_ends = list(pids)
    while open_ends:
        pid = open_ends.pop()
        if pid not in found:
            found.add(pid)
            open_ends.extend(children.get(pid, ()))
    return frozenset(identity for identity in map(identify, found) if identity)


def marked(stack: str) -> frozenset[Identity]:
    """Every process that inherited this stack's mark, however far it has moved away from its parent."""
    if not _LINUX:
        return frozenset()
    wanted = f"{MARK}={stack}".encode()
    found = set()
    for pid in _pids():
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and (identity := identify(pid)):
            found.add(identity)
    return frozenset(found)


def session(leader: int) -> frozenset[Identity]:
    """Who still is in the session that this pid once opened: what a killed service left behind."""
    if not _LINUX:
        return frozenset()
    found = set()
    for pid in _pids():
        try:
            if int(_stat(pid)[3]) == leader and (identity := identify(pid)):
                found.add(identity)
        except (OSError, IndexError):
            continue
    return frozenset(found)


def send(identity: Identity, sign: signal.Signals) -> bool:
    """False when that process is gone."""
    if not alive(identity):
        return False
    try:
        os.kill(identity.pid, sign)
    except ProcessLookupError:
        return False
    return True


def await_end(identities: Iterable[Identity], seconds: float) -> frozenset[Identity]:
    """Waits until all are gone, at most so long, and says who is not. A zombie is gone."""
    deadline = time.monotonic() + seconds
    left = frozenset(identities)
    while True:
        left = frozenset(identity for identity in left if alive(identity))
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_POLL_SECONDS)


def end(identities: Iterable[Identity], sign: signal.Signals, grace_seconds: float) -> None:
    """Asks with `sign`, waits, then kills who is left."""
    asked = frozenset(identities)
    for identity in asked:
        send(identity, sign)
    left = await_end(asked, grace_seconds)
    for identity in left:
        send(identity, signal.SIGKILL)
    await_end(left, grace_seconds)


def working_folder(pid: int) -> Path | None:
    """None when there is no such process, or where the system doesn't say."""
    try:
        return (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _parents() -> Iterator[tuple[int, int]]:
    if not _LINUX:
        yield from ((pid, parent) for pid, parent, _ in _listed())
        return
    for pid in _pids():
        try:
            yield pid, int(_stat(pid)[1])
        except (OSError, IndexError):
            continue


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; the second, the name, may hold anything."""
    return (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def _boot() -> str:
    """Start times count from boot, so that they mean nothing without it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def _listed() -> Iterator[tuple[int, int, str]]:
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,state=,lstart="], capture_output=True, text=True, check=True
    ).stdout
    for line in listing.splitlines():
        pid, parent, state, started = line.split(maxsplit=3)
        if not state.startswith("Z"):
            yield int(pid), int(parent), started
