"""The machine runs out of something: disk where the workers keep their data, memory of a worker's child."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.workspaces.cgroup import Group, Groups
from tests.benchmarks.faults.processes import busy_child
from tests.benchmarks.faults.scene import Kinds, Scene

_DISK: Final = "size=160m"
_STARVING_BYTES: Final = 64 * 1024
_PROCESSES: Final = 1000
_BALLAST: Final = ".ballast"


@dataclass
class MachineFaults:
    scene: Scene
    left_out: list[str] = field(default_factory=list)
    _groups: Groups | None = field(init=False)

    def __post_init__(self) -> None:
        self._groups = Groups.find()
        if self._groups is None:
            self.left_out.append("out_of_memory (no control groups)")
        if not self.scene.small_disk:
            self.left_out.append("disk_full (no right to mount)")

    @property
    def kinds(self) -> Kinds:
        memory: Kinds = {"out_of_memory": (3, self.out_of_memory)} if self._groups else {}
        disk: Kinds = {"disk_full": (3, self.disk_full)} if self.scene.small_disk else {}
        return {**memory, **disk}

    def out_of_memory(self) -> bool:
        """The child's next page is one too many for its group, and the kernel kills it."""
        pid = busy_child(self.scene)
        if pid is None or self._groups is None:
            return False
        group = starve(self._groups, pid)

        def clear_away() -> None:
            group.kill()
            group.remove()

        self.scene.repairs.surely(2.0, clear_away)
        return True

    def disk_full(self) -> bool:
        """No byte more can be written: workspaces, mirrors and the artifact store are on one disk."""
        at = self.scene.here.data / _BALLAST
        if at.exists():
            return False
        left = self.scene.chance.choice((0, 0, 64 * 1024))
        self.scene.repairs.surely(
            self.scene.chance.uniform(0.3, 2) * self.scene.lease, lambda: at.unlink(missing_ok=True)
        )
        fill(at, left)
        return True


def starve(groups: Groups, pid: int) -> Group:
    """Puts it into a group with no memory to give away; what it has, it keeps, until it wants more."""
    group = groups.make(processes=_PROCESSES, memory_bytes=_STARVING_BYTES)
    for door in group.doors:
        with contextlib.suppress(OSError):  # it has just ended
            Path(door).write_text(str(pid))
    return group


def fill(at: Path, left: int) -> None:
    """Makes this file so long that `left` bytes of its disk are free."""
    disk = os.statvfs(at.parent)
    with at.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left))


@contextmanager
def small_disk(at: Path) -> Iterator[bool]:
    """A disk of its own at this folder, small enough to be filled; False: this account may not mount."""
    at.mkdir(parents=True, exist_ok=True)
    mount = ("mount", "-t", "tmpfs", "-o", _DISK, "tmpfs", str(at))
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:  # workers are still in it
            subprocess.run(("umount", "--lazy", str(at)), check=False, capture_output=True)
