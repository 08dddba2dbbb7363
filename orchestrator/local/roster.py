"""Who runs for a data folder, as a file, which `ps`, `down`, the watcher and the next `up` read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from orchestrator.local import processes
from orchestrator.local.processes import Identity

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE: Final = "stack.json"
_WORKER_GRACE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One service. `pid` and `started` are None between a crash and the next try; `since` is Unix time."""

    name: str
    kind: str
    status: str
    """starting, running, crashed, stopping"""
    pid: int | None
    started: str | None
    since: float
    restarts: int
    log: str
    port: int | None
    stop: int
    stop_order: int

    @property
    def identity(self) -> Identity | None:
        return Identity(self.pid, self.started) if self.pid is not None and self.started is not None else None


@dataclass(frozen=True, slots=True)
class Roster:
    """All that one supervisor started. `temporary` are folders that end with it."""

    stack: str
    supervisor: Identity
    entries: tuple[Entry, ...] = ()
    ports: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    urls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    temporary: tuple[str, ...] = ()


def read(folder: Path) -> Roster | None:
    """None when nothing was ever started there, or the file is damaged."""
    try:
        raw = json.loads((folder / _FILE).read_text("utf-8"))
        return Roster(
            stack=raw["stack"],
            supervisor=Identity(**raw["supervisor"]),
            entries=tuple(Entry(**entry) for entry in raw["entries"]),
            ports=raw["ports"],
            urls=raw["urls"],
            temporary=tuple(raw["temporary"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, roster: Roster) -> None:
    """All or nothing: a reader never sees half a file."""
    plain = {
        "stack": roster.stack,
        "supervisor": asdict(roster.supervisor),
        "temporary": roster.temporary,
        "entries": [asdict(entry) for entry in roster.entries],
        "ports": dict(roster.ports),
        "urls": dict(roster.urls),
    }
    descriptor, beside = tempfile.mkstemp(prefix=f"{_FILE}.", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1)
    Path(beside).replace(folder / _FILE)


def sweep(roster: Roster) -> int:
    """Ends all that a dead supervisor left, in stopping order and soon, and says how many there were.

    Safe to run twice at once: a process is known by pid and start time, or by the random mark it inherited.
    """
    ended = 0
    for _, wave in groupby(sorted(roster.entries, key=lambda entry: entry.stop_order), _stop_order):
        for entry in wave:
            identity = entry.identity
            if identity is None or not processes.alive(identity):
                continue
            relatives = processes.family([identity.pid]) - {identity}
            processes.end([identity], signal.Signals(entry.stop), _WORKER_GRACE_SECONDS)
            processes.end(relatives, signal.SIGKILL, _WORKER_GRACE_SECONDS)
            ended += 1
    strays = processes.marked(roster.stack)
    processes.end(strays, signal.SIGKILL, _WORKER_GRACE_SECONDS)
    for folder in roster.temporary:
        shutil.rmtree(folder, ignore_errors=True)
    return ended + len(strays)


def _stop_order(entry: Entry) -> int:
    return entry.stop_order
