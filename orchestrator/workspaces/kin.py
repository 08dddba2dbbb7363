"""Finds the processes that one command started, by what the kernel recorded, never by name.

In bubblewrap they share a PID namespace, and die with its first process. Without it they inherit the session
or, if they left that, the mark in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from orchestrator.workspaces.cgroup import Group

PROC: Final = Path("/proc")
SAMPLE: Final = 200
ROUNDS: Final = 20
"""How often what multiplies while it is being killed is looked for again."""


def threads_of_machine() -> int:
    """All threads that exist just now; 0 where nobody tells."""
    try:
        return int((PROC / "loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, IndexError, ValueError):
        return 0


class Kindred:
    """What descends from `pid`, which leads a session.

    `group` holds them all, where there is one; else, outside bubblewrap, `mark` (NAME=value) in their
    environment does.
    """

    def __init__(self, pid: int, *, most: int, mark: str | None, group: Group | None) -> None:
        self._pid = pid
        self._most = most
        self._mark = mark.encode() if mark is not None else None
        self._group = group
        self._before = threads_of_machine()

    def too_many(self) -> bool:
        """Judged by a sample of the newest processes: to count them all takes too long under a fork bomb."""
        if self._group is not None or threads_of_machine() - self._before <= self._most:
            return False
        newest = _newest(SAMPLE)
        if self._mark is not None:
            ours = sum(self._mark in _environment(pid) for pid in newest)
        else:
            namespace = self._namespace()
            ours = sum(_link(PROC / f"{pid}/ns/pid") == namespace for pid in newest if namespace)
        return ours * 2 > len(newest)

    def kill(self) -> None:
        """All of them, also those in sessions of their own. Bubblewrap's death is its sandbox's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()
        elif self._mark is not None:
            self._kill_marked(self._mark)

    def _kill_marked(self, mark: bytes) -> None:
        for _ in range(ROUNDS):
            found = [pid for pid in _pids() if mark in _environment(pid)]
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _namespace(self) -> str:
        """The PID namespace of bubblewrap's child."""
        try:
            first = (PROC / f"{self._pid}/task/{self._pid}/children").read_text().split()[0]
        except (OSError, IndexError):
            return ""
        return _link(PROC / first / "ns/pid")


def end_orphans(name: str) -> None:
    """Kills what carries a mark `name` whose first part, the worker's pid, is nobody's any more."""
    prefix = f"{name}=".encode()
    for pid in _pids():
        for entry in _environment(pid):
            worker = entry.removeprefix(prefix).partition(b"-")[0]
            if entry.startswith(prefix) and worker.isdigit() and not (PROC / worker.decode()).exists():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _newest(count: int) -> list[int]:
    try:
        last = int((PROC / "loadavg").read_text().split()[4])
    except (OSError, IndexError, ValueError):
        return []
    return [pid for pid in range(last, max(1, last - count), -1) if (PROC / str(pid)).exists()]


def _pids() -> list[int]:
    try:
        return [int(at.name) for at in PROC.iterdir() if at.name.isdecimal()]
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _environment(pid: int) -> list[bytes]:
    """As it was when the process started; a zombie has none."""
    try:
        return (PROC / f"{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
