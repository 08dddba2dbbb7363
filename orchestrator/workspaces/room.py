"""How much room one attempt's files take, and how much its disk has left, looked at while commands run.

A file system without quotas lets one command fill the machine with many files, or use up its inodes. Looking
through a tree costs, asking the disk doesn't: the tree is looked through where the disk has lost so much
since the last time that a bound may have been passed, and now and then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault

EVERY: Final = 1.0
"""Seconds between two questions to the disk."""
AGAIN: Final = 30.0
"""Seconds after which a tree is looked through in any case: others may have made room meanwhile."""
SLICE: Final = 0.05
"""Seconds of one look; a large tree takes several."""
_REST: Final = 10
"""Looking through a tree takes at most about one part in so many of the time."""
_STEP: Final = 200


@dataclass(frozen=True, slots=True)
class RoomBounds:
    """What one attempt's files may take, its agent's HOME with them, and what stays free on their disk."""

    bytes: int = 20 * 1024**3
    files: int = 2_000_000
    """Folders with them."""
    free_bytes: int = 512 * 1024**2
    free_share: int = 20
    """On a small disk one part in so many of it, where that is less."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes and files that it can still take, and how many of each are to stay free."""

    free: int
    inodes: int
    floor: int
    inode_floor: int

    @classmethod
    def of(cls, at: Path, bounds: RoomBounds) -> Disk:
        found = os.statvfs(at)
        total = found.f_blocks * found.f_frsize
        inode_floor = min(10_000, found.f_files // 100)  # some file systems count none
        return cls(
            found.f_bavail * found.f_frsize,
            found.f_favail,
            min(bounds.free_bytes, total // bounds.free_share),
            inode_floor,
        )

    @property
    def is_low(self) -> bool:
        return self.free < self.floor or self.inodes < self.inode_floor

    @property
    def is_nearly_full(self) -> bool:
        return self.free < self.floor // 4 or self.inodes < self.inode_floor // 4


@dataclass(slots=True)
class _Taken:
    """What files take; `unread`: there are some that could not be looked at."""

    bytes: int = 0
    files: int = 0
    unread: bool = False


class Room:
    """One attempt's. May be asked from several threads."""

    def __init__(
        self, folders: Sequence[Path], bounds: RoomBounds, ask: Callable[[Path, RoomBounds], Disk] = Disk.of
    ) -> None:
        self._folders = list(folders)
        self._bounds = bounds
        self._ask = ask
        self._lock = threading.Lock()
        self._begun: Disk | None = None
        self._first: _Taken | None = None
        """As the attempt found it: what it has written is what came on top."""
        self._taken = _Taken()
        self._disk_then: Disk | None = None
        """When the tree was looked through last."""
        self._walk: Iterator[_Taken] | None = None
        self._spent = 0.0
        self._asked_at = self._walked_at = self._rested_at = -AGAIN
        self._over: WorkspaceFault | None = None
        self._low: WorkspaceFault | None = None

    def cover(self, folder: Path) -> None:
        """What lies there counts, too."""
        if folder not in self._folders:
            self._folders.append(folder)

    def fault(self) -> WorkspaceFault | None:
        """Why what runs must end now: `workspace-too-large` (from then on always) or `disk-full`. To be asked
        several times a second while something runs."""
        if self._lock.acquire(blocking=False):
            try:
                self._look(monotonic())
            finally:
                self._lock.release()
        return self._over or self._low

    def check_size(self) -> None:
        """Raises `WorkspaceFault` where the files take too much."""
        self.fault()
        if self._over is not None:
            raise self._over

    def _look(self, now: float) -> None:
        if self._over is not None or (self._walk is None and now - self._asked_at < EVERY):
            return
        self._asked_at = now
        try:
            disk = self._ask(self._folders[0], self._bounds)
        except OSError:
            return  # it is being removed
        self._begun = self._begun or disk
        if self._walk is None and self._is_due(disk, now):
            self._walk, self._spent = _looked_through(list(self._folders)), 0.0
            self._disk_then, self._walked_at = disk, now
        if self._walk is not None:
            self._walk_on(self._walk)
        self._judge(disk)

    def _is_due(self, disk: Disk, now: float) -> bool:
        then = self._disk_then
        if then is None or now - self._walked_at >= AGAIN:
            return True
        lost = then.free - disk.free >= max(1, (self._bounds.bytes - self._taken.bytes) // 2)
        lost_inodes = then.inodes - disk.inodes >= max(1, (self._bounds.files - self._taken.files) // 2)
        return now >= self._rested_at and (lost or lost_inodes or disk.is_low)

    def _walk_on(self, walk: Iterator[_Taken]) -> None:
        began = now = monotonic()
        for taken in walk:
            now = monotonic()
            if taken.bytes > self._bounds.bytes or taken.files > self._bounds.files:
                break
            if now - began > SLICE:
                self._spent += now - began
                return
        self._taken = taken
        self._first = self._first or self._taken
        self._walk, self._rested_at = None, now + (self._spent + now - began) * _REST

    def _judge(self, disk: Disk) -> None:
        bounds, begun, first = self._bounds, self._begun or disk, self._first or self._taken
        size, files = self._taken.bytes, self._taken.files
        if self._taken.unread:  # then all that the disk has lost may be its own
            size = max(size, first.bytes + begun.free - disk.free)
            files = max(files, first.files + begun.inodes - disk.inodes)
        if size > bounds.bytes or files > bounds.files:
            self._over = WorkspaceFault(
                "workspace-too-large",
                f"The step's files take {size / 1e9:,.2f} GB in {files:,} files;"
                f" at most {bounds.bytes / 1e9:,.2f} GB in {bounds.files:,} files are allowed.",
                ErrorClass.LIMIT,
            )
        written = size - first.bytes >= disk.free or files - first.files >= disk.inodes
        ends = disk.is_low and (written or disk.is_nearly_full)
        self._low = _full(disk) if ends else None


def check_disk(at: Path, bounds: RoomBounds) -> None:
    """Raises `WorkspaceFault` where the disk has too little left for anything to begin."""
    disk = Disk.of(at, bounds)
    if disk.is_low:
        raise _full(disk)


def _full(disk: Disk) -> WorkspaceFault:
    return WorkspaceFault(
        "disk-full",
        f"{disk.free / 1e6:,.0f} MB and {disk.inodes:,} files are left on the worker's disk;"
        f" {disk.floor / 1e6:,.0f} MB and {disk.inode_floor:,} are kept free.",
        ErrorClass.STORAGE,
    )


def _looked_through(folders: list[Path]) -> Iterator[_Taken]:
    """The sum so far, now and then, and at the end; a file of several names counts once."""
    taken, linked = _Taken(), set[int]()
    left: list[str] = [str(folder) for folder in folders]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for number, entry in enumerate(entries, 1):
                    _add(entry, taken, linked, left)
                    if number % _STEP == 0:
                        yield taken
        except (FileNotFoundError, NotADirectoryError):
            pass  # it has just gone
        except OSError:
            taken.unread = True  # closed to us, or too deep
        yield taken


def _add(entry: os.DirEntry[str], taken: _Taken, linked: set[int], left: list[str]) -> None:
    try:
        found = entry.stat(follow_symlinks=False)
        is_folder = entry.is_dir(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError:
        taken.unread = True
        return
    if is_folder:
        left.append(entry.path)
    elif found.st_nlink > 1:
        if found.st_ino in linked:
            return
        linked.add(found.st_ino)
    taken.bytes += found.st_blocks * 512
    taken.files += 1
