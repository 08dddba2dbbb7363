"""Files in an agent's HOME, which the agent may have changed into anything: no link is followed there,
wherever it leads, and nothing is waited for that is no ordinary file. All raise OSError."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Final

from orchestrator.workspaces.removal import remove_folder

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def count_lines(home: Path, path: PurePosixPath) -> int:
    """0 where there is no such file, or something else in its place."""
    try:
        at = _folder(home, path.parent, make=False)
        try:
            with _opened(path.name, at) as file:
                return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1024 * 1024), b""))
        finally:
            os.close(at)
    except OSError:
        return 0


def read_end(home: Path, path: PurePosixPath, most: int) -> str:
    """At most so many bytes of its end; empty where there is no such file, or something else in its place."""
    try:
        at = _folder(home, path.parent, make=False)
        try:
            with _opened(path.name, at) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - most))
                return file.read(most).decode("utf-8", "replace")
        finally:
            os.close(at)
    except OSError:
        return ""


def write(home: Path, path: PurePosixPath, lines: Iterable[str]) -> None:
    """The whole file anew, its folders made where they are missing: what was there before is not opened."""
    at = _folder(home, path.parent, make=True)
    name = f".{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=at), "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.rename(name, path.name, src_dir_fd=at, dst_dir_fd=at)
    finally:
        os.close(at)


def make_folder(home: Path, path: PurePosixPath) -> None:
    """With those above it, where they are missing."""
    os.close(_folder(home, path, make=True))


def keep_only(home: Path, kept: Collection[PurePosixPath]) -> None:
    """Removes all else; of a path's last part, `*` stands for anything. A link is removed, wherever it lies
    on the way to what is kept. Nothing else may write there meanwhile."""
    for entry in list(os.scandir(home)):
        parts = [path.parts for path in kept if fnmatchcase(entry.name, path.parts[0])]
        is_folder = entry.is_dir(follow_symlinks=False)
        if not entry.is_symlink() and any(len(each) == 1 for each in parts):
            continue
        if is_folder and parts:
            keep_only(Path(entry.path), [PurePosixPath(*each[1:]) for each in parts])
        elif is_folder:
            remove_folder(Path(entry.path))
        else:
            Path(entry.path).unlink()


def _opened(name: str, at: int) -> IO[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no ordinary file")
    return os.fdopen(descriptor, "rb")


def _folder(home: Path, path: PurePosixPath, *, make: bool) -> int:
    """A descriptor of the folder; the caller closes it. Raises OSError for what is no folder, or a link."""
    at = os.open(home, _FOLDER)
    for part in path.parts:
        before = at
        try:
            if part in ("..", path.root):
                raise OSError("a path leads out of its folder")
            if make:
                _make(part, before)
            at = os.open(part, _FOLDER, dir_fd=before)
        finally:
            os.close(before)
    return at


def _make(name: str, at: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=at)
    except FileExistsError:
        return
