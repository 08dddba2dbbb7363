"""Files beneath one folder, reached by descriptors: whatever its links say, nothing outside is touched.

Linux resolves beneath by itself (`openat2`, since 5.6), so links that stay inside work. Elsewhere each part
of a path is opened in turn and a link on the way is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault, WorkspaceRefusal

MAX_READ: Final = 4 * 1024**2
MAX_WRITE: Final = 16 * 1024**2
MAX_ENTRIES: Final = 2000
TEMPORARY: Final = ".orchestrator-new"

Entry = Literal["file", "link", "folder", "special", "gone"]

_OPENAT2: Final = 437
_BENEATH: Final = 0x08 | 0x02  # RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_NO_LINKS: Final = 0x04
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_QUIET: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO or a terminal must not hold us up


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Files:
    """Paths are relative to `root`, '/'-separated. What leads outside, or isn't there: `WorkspaceRefusal`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._openat2 = _libc is not None and self._works()

    def read(self, path: str, start: int | None = None, end: int | None = None) -> str:
        """Lines `start` to `end`, from 1, both included; newlines as stored. UTF-8 text of up to 4 MiB."""
        data = self.read_bytes(path)
        if b"\0" in data:
            raise WorkspaceRefusal(f"{path} is not a text file ({len(data)} bytes)")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise WorkspaceRefusal(
                f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
            ) from error
        if start is None and end is None:
            return text
        first = max(1, start or 1)
        if end is not None and end < first:
            raise WorkspaceRefusal(f"the range {start}-{end} of {path} is empty")
        lines = text.splitlines(keepends=True)
        if first > max(1, len(lines)):
            raise WorkspaceRefusal(f"{path} has {len(lines)} lines, none at {first}")
        return "".join(lines[first - 1 : end])

    def read_bytes(self, path: str, most: int = MAX_READ) -> bytes:
        with self._folder() as root, _refusing(path):
            descriptor = self._open(root, self.parts(path), os.O_RDONLY | _QUIET)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise WorkspaceRefusal(f"{path} is not a file but a {_kind(found.st_mode)}")
                if found.st_size > most:
                    raise WorkspaceRefusal(f"{path} is too large to be read whole: {found.st_size} bytes")
                return file.read(most)

    def write(self, path: str, text: str) -> None:
        """Replaces the whole file at once; makes missing folders; keeps the mode of what was there."""
        parts = self.parts(path)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise WorkspaceRefusal("the text contains characters that UTF-8 can't hold") from error
        if not parts:
            raise WorkspaceRefusal("the path names the workspace itself")
        if len(data) > MAX_WRITE:
            raise WorkspaceRefusal(f"the text is too long: {len(data)} bytes, at most {MAX_WRITE}")
        with self._folder() as root, _refusing(path):
            parts = self._behind_links(root, parts)
            folder = self._folders(root, parts[:-1])
            try:
                self._replace(folder, parts[-1], data, path)
            finally:
                os.close(folder)

    def delete(self, path: str) -> None:
        """A file, a link itself, or an empty folder."""
        parts = self.parts(path)
        if not parts:
            raise WorkspaceRefusal("the workspace itself can't be deleted")
        with self._folder() as root, _refusing(path):
            folder = self._open(root, parts[:-1], _FOLDER)
            try:
                mode = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    os.rmdir(parts[-1], dir_fd=folder)
                else:
                    os.unlink(parts[-1], dir_fd=folder)
            finally:
                os.close(folder)

    def move(self, path: str, to: str) -> None:
        """A file, a link itself, or a folder with all that is in it, to a path where nothing lies."""
        source, target = self.parts(path), self.parts(to)
        if not source or not target:
            raise WorkspaceRefusal("the workspace itself can't be moved or replaced")
        if target[: len(source)] == source:
            raise WorkspaceRefusal(f"{to} lies in {path} itself")
        with self._folder() as root, contextlib.ExitStack() as stack:
            with _refusing(path):
                above = self._open(root, source[:-1], _FOLDER)
                stack.callback(os.close, above)
                os.stat(source[-1], dir_fd=above, follow_symlinks=False)
            with _refusing(to):
                folder = self._folders(root, target[:-1])
                stack.callback(os.close, folder)
                if _is_there(folder, target[-1]):
                    raise WorkspaceRefusal(f"{to} exists; delete it first, or choose another path")
                os.rename(source[-1], target[-1], src_dir_fd=above, dst_dir_fd=folder)

    def names(self, path: str, depth: int) -> list[str]:
        """At most `depth` levels below `path`, sorted, folders with a '/', no `.git`; no link is followed."""
        parts = self.parts(path)
        found: list[str] = []
        with self._folder() as root, _refusing(path):
            top = self._open(root, parts, _FOLDER)
            try:
                self._walk(top, "".join(f"{part}/" for part in parts), depth, found)
            finally:
                os.close(top)
        if len(found) > MAX_ENTRIES:
            found[MAX_ENTRIES:] = [f"[more than {MAX_ENTRIES} entries: list a folder below]"]
        return found

    def has(self, path: str) -> bool:
        """Whether anything lies there, links as such."""
        parts = self.parts(path)
        return not parts or self.look(os.fsencode("/".join(parts)))[0] != "gone"

    def look(self, path: bytes) -> tuple[Entry, int]:
        """What lies at a name that git reported, and its size; no link is followed on the way."""
        *folders, name = path.rstrip(b"/").split(b"/")
        with self._folder() as root, contextlib.ExitStack() as stack:
            try:
                above = root
                for folder in folders:
                    above = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
                    stack.callback(os.close, above)
                found = os.stat(name, dir_fd=above, follow_symlinks=False)
            except OSError:
                return "gone", 0
        kinds: tuple[tuple[int, Entry], ...] = (
            (stat.S_IFREG, "file"), (stat.S_IFLNK, "link"), (stat.S_IFDIR, "folder"),
        )  # fmt: skip
        mode = stat.S_IFMT(found.st_mode)
        return next((kind for bits, kind in kinds if mode == bits), "special"), found.st_size

    @contextmanager
    def _folder(self) -> Iterator[int]:
        try:
            descriptor = os.open(self.root, _FOLDER)
        except OSError as error:
            raise WorkspaceFault("workspace-gone", f"the workspace is gone: {error.strerror}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def parts(self, path: str) -> list[str]:
        """Absolute spellings of the root, as commands print them, are understood, too."""
        if "\0" in path:
            raise WorkspaceRefusal("the path contains a NUL")
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            raise WorkspaceRefusal("the path contains characters that no file's name can hold") from error
        for root in ("/workspace", str(self.root)):
            if path == root or path.startswith(f"{root}/"):
                path = path[len(root) + 1 :]
                break
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts:
            raise WorkspaceRefusal(f"{path} leads outside the workspace")
        return parts

    def _walk(self, folder: int, prefix: str, depth: int, found: list[str]) -> None:
        if depth < 1 or len(found) > MAX_ENTRIES:
            return
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name == ".git":
                continue
            below = entry.is_dir(follow_symlinks=False)
            shown = os.fsencode(entry.name).decode("utf-8", "replace")
            found.append(f"{prefix}{shown}{'/' if below else ''}")
            if below and depth > 1:
                with contextlib.suppress(OSError):
                    inner = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        self._walk(inner, f"{prefix}{shown}/", depth - 1, found)
                    finally:
                        os.close(inner)

    def _open(self, root: int, parts: list[str], flags: int, *, links: bool = True) -> int:
        if self._openat2:
            resolve = _BENEATH if links else _BENEATH | _NO_LINKS
            return _openat2(root, "/".join(parts) or ".", flags, resolve)
        descriptor = os.dup(root)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            try:
                inner = os.open(part, (flags if last else _FOLDER) | os.O_NOFOLLOW, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor

    def _folders(self, root: int, parts: list[str]) -> int:
        """Opens a folder, making what is missing of it."""
        for length in range(1, len(parts) + 1):
            above = self._open(root, parts[: length - 1], _FOLDER)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[length - 1], dir_fd=above)
            finally:
                os.close(above)
        return self._open(root, parts, _FOLDER)

    def _behind_links(self, root: int, parts: list[str]) -> list[str]:
        """The path of what a link at the end of `parts` leads to; the rest of it holds no link any more.

        It is opened again without following any, so a link put there in between is refused.
        """
        if not self._openat2:
            return parts
        try:
            itself = self._open(root, parts, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return parts
        try:
            if not stat.S_ISLNK(os.fstat(itself).st_mode):
                return parts
        finally:
            os.close(itself)
        descriptor = self._open(root, parts, os.O_PATH | os.O_CLOEXEC)
        try:
            real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
            top = os.readlink(f"/proc/self/fd/{root}")  # noqa: PTH115
        finally:
            os.close(descriptor)
        inside = real.removeprefix(f"{top}/").split("/")
        os.close(self._open(root, inside, os.O_PATH | os.O_CLOEXEC, links=False))
        return inside

    def _replace(self, folder: int, name: str, data: bytes, path: str) -> None:
        mode = 0o644
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISREG(there):
                raise WorkspaceRefusal(f"{path} is not a file but a {_kind(there)}")
            mode = stat.S_IMODE(there)
        temporary = f"{TEMPORARY}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        descriptor = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=folder,
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(descriptor, mode)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise

    def _works(self) -> bool:
        root = os.open("/", _FOLDER)
        try:
            os.close(_openat2(root, ".", _FOLDER, _BENEATH))
        except OSError:
            return False
        finally:
            os.close(root)
        return True


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    if _libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
    for _ in range(20):  # EAGAIN: something was renamed meanwhile, so the kernel couldn't tell
        descriptor: int = _libc.syscall(
            _OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), path)


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Says a failed call in words for whoever named the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ELOOP):
            raise WorkspaceRefusal(f"{path} leads outside the workspace, or through a link") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            if error.errno == errno.EIO:
                raise WorkspaceFault("disk-broken", str(error)) from error
            raise WorkspaceFault("disk-full", str(error), ErrorClass.STORAGE) from error
        raise WorkspaceRefusal(f"{path}: {(error.strerror or 'it failed').lower()}") from error


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "device, pipe or socket"
