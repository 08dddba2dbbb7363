"""A control group around each command, where we may make one: processes and memory limited as a whole.

Version 1 (one tree per controller) and version 2 (one tree). Mostly root may; other accounts are held by the
kernel's limit on processes instead, from which root is exempt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
NAME: Final = "orchestrator"
TWO: Final = 2


@dataclass(frozen=True, slots=True)
class Group:
    """The folders (one for each tree) of one command's group."""

    folders: tuple[Path, ...]

    @property
    def doors(self) -> tuple[str, ...]:
        """A process that writes its id to each of these is inside, with all that it starts from then on."""
        return tuple(str(folder / "cgroup.procs") for folder in self.folders)

    def pids(self) -> list[int]:
        try:
            return [int(line) for line in (self.folders[0] / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """Until nothing is left; forks can't win, since the group's size is limited."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                (self.folders[0] / "cgroup.kill").write_text("1")
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)

    def remove(self) -> None:
        for folder in self.folders:
            for _ in range(50):
                with contextlib.suppress(FileNotFoundError):
                    try:
                        folder.rmdir()
                    except OSError:  # what was just killed is still being reaped
                        time.sleep(0.002)
                        continue
                break


class Groups:
    """Makes groups; `None` from `find` where that isn't possible."""

    def __init__(self, version: int, parents: tuple[Path, ...]) -> None:
        self._version = version
        self._parents = parents
        self._made = 0

    @classmethod
    def find(cls, root: Path = ROOT) -> Groups | None:
        """Also ends what is left in groups whose worker (its pid is in their names) is gone."""
        two = (root / "cgroup.controllers").exists()
        parents = (root / NAME,) if two else (root / "pids" / NAME, root / "memory" / NAME)
        try:
            for parent in parents:
                if not parent.parent.is_dir():
                    return None
                parent.mkdir(exist_ok=True)
                if two:
                    (root / "cgroup.subtree_control").write_text("+pids +memory")
                    (parent / "cgroup.subtree_control").write_text("+pids +memory")
                for old in parent.iterdir():
                    if old.is_dir() and not Path("/proc", old.name.partition("-")[0]).exists():
                        Group((old,)).kill()
                        Group((old,)).remove()
            groups = cls(TWO if two else 1, parents)
            groups.make(processes=10, memory_bytes=1024**3).remove()
        except OSError:
            return None
        return groups

    def make(self, *, processes: int, memory_bytes: int) -> Group:
        self._made += 1
        name = f"{os.getpid()}-{time.monotonic_ns()}-{self._made}"
        group = Group(tuple(parent / name for parent in self._parents))
        for folder in group.folders:
            folder.mkdir()
        limits: Sequence[tuple[Path, str, int]] = (
            (group.folders[0], "pids.max", processes),
            (
                group.folders[-1],
                "memory.max" if self._version == TWO else "memory.limit_in_bytes",
                memory_bytes,
            ),
        )
        for folder, knob, value in limits:
            (folder / knob).write_text(str(value))
        return group
