"""Finds the processes that one command started, by what the kernel recorded, never by name.

In bubblewrap they share a PID namespace, and die with its first process. Without it they inherit the session
or, if they left that, the mark in their environment. What a whole step started is the lineage of the thread
that carries it out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

    def terminate(self) -> None:
        """SIGTERM to what bubblewrap started, since its own end would be a sudden one for all in it; without
        it to the process itself."""
        for pid in self._inner() or [self._pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """All of them, also those in sessions of their own. Bubblewrap's death is its sandbox's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()
        elif self._mark is not None:
            _kill_marked(self._mark)

    def _namespace(self) -> str:
        """The PID namespace of bubblewrap's child."""
        first = self._first()
        return _link(PROC / f"{first}/ns/pid") if first is not None else ""

    def _first(self) -> int | None:
        return next(iter(_children(self._pid, self._pid)), None)

    def _inner(self) -> list[int]:
        """Children of the first process of another PID namespace: what runs as bubblewrap's command."""
        first = self._first()
        if first is None or _link(PROC / f"{first}/ns/pid") == _link(PROC / "self/ns/pid"):
            return []
        return _children(first, first)


def marked(mark: str) -> list[int]:
    """Processes of this machine that were started with NAME=value in their environment and still live."""
    wanted = mark.encode()
    return [pid for pid in _pids() if wanted in _environment(pid)]


def kill_marked(mark: str) -> None:
    """SIGKILL to all of them, until none is left."""
    _kill_marked(mark.encode())


def _kill_marked(mark: bytes) -> None:
    for _ in range(ROUNDS):
        found = [pid for pid in _pids() if mark in _environment(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for good: its id may be another's later, its id and its start together never."""

    pid: int
    started: str
    """In ticks since boot."""

    def kill(self) -> bool:
        """False: it has ended already."""
        handle = _handle(self.pid)
        try:
            found = _stat(self.pid)  # the handle holds whoever has the id now: is it still the one?
            if found is None or found[1] != self.started:
                return False
            if handle is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True


def _handle(pid: int) -> int | None:
    """None: it has ended, or the kernel is older than 5.3 and has no handles."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


class Lineage:
    """What one thread of this process has started, and what that has started, by the kernel's own record.

    Knows nothing where there is no /proc. A process whose parent died first is found by its mark alone.
    """

    def __init__(self, thread: int, mark: str) -> None:
        self._thread = thread
        self._mark = f"{mark}=".encode()

    @classmethod
    def of_this_thread(cls, mark: str) -> Lineage:
        """`mark`: the name of the variable that `Kindred` finds what detached itself by."""
        return cls(threading.get_native_id(), mark)

    def living(self) -> list[Identity]:
        """Parents before children; what is dead but not waited for yet doesn't count."""
        return list(_descend(_children(os.getpid(), self._thread)))

    def kill(self) -> int:
        """All of them, until none is left; how many that were."""
        killed, marks = set[Identity](), set[bytes]()
        for _ in range(ROUNDS):
            found = self.living()
            for one in found:
                marks.update(entry for entry in _environment(one.pid) if entry.startswith(self._mark))
            killed.update(one for one in found if one.kill())
            if not found:
                break
        for mark in marks:
            _kill_marked(mark)
        return len(killed)


def _descend(pids: list[int]) -> Iterator[Identity]:
    for pid in pids:
        found = _stat(pid)
        if found is not None and found[0] not in "ZX":
            yield Identity(pid, found[1])
            for thread in _threads(pid):
                yield from _descend(_children(pid, thread))


def _children(pid: int, thread: int) -> list[int]:
    try:
        return [int(word) for word in (PROC / f"{pid}/task/{thread}/children").read_text().split()]
    except OSError:
        return []


def _threads(pid: int) -> list[int]:
    try:
        return [int(at.name) for at in (PROC / f"{pid}/task").iterdir()]
    except OSError:
        return []


def _stat(pid: int) -> tuple[str, str] | None:
    """State and start; what stands before them is a name, which may hold anything."""
    try:
        words = (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (words[0], words[19]) if len(words) > 19 else None  # noqa: PLR2004 - proc(5): field 22


def runs(name: str) -> Iterator[tuple[int, str]]:
    """Processes that carry a mark `name`, and its value."""
    prefix = f"{name}=".encode()
    for pid in _pids():
        for entry in _environment(pid):
            if entry.startswith(prefix):
                yield pid, entry.removeprefix(prefix).decode("utf-8", "replace")


def end_runs(name: str, of: Callable[[str], bool]) -> int:
    """Kills what carries a mark `name` whose value `of` says yes to; how many processes that were."""
    killed = 0
    for pid, value in runs(name):
        if of(value):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


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
