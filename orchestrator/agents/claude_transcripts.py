"""Claude Code's transcripts, kept beside its own files so that any host can resume its sessions."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from claude_agent_sdk import SessionKey, SessionStoreEntry, project_key_for_directory

from orchestrator.agents.ports import Transcripts

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Mirror:
    """What the SDK writes to and reads from: our port, which knows neither its types nor its loop. No more
    than this is asked of a store."""

    def __init__(self, transcripts: Transcripts) -> None:
        self._transcripts = transcripts

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        if entries:
            await asyncio.to_thread(self._transcripts.append, *_place(key), [dict(one) for one in entries])

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        found: Any = await asyncio.to_thread(self._transcripts.load, *_place(key))
        return list(found) if found else None

    async def list_subkeys(self, key: Any) -> list[str]:
        found = await asyncio.to_thread(self._transcripts.subpaths, key["project_key"], key["session_id"])
        return list(found)


def _place(key: SessionKey) -> tuple[str, str, str]:
    return key["project_key"], key["session_id"], key.get("subpath", "")


def restore(transcripts: Transcripts, session_id: str, home: Path, folder: str) -> bool:
    """Makes the session's files in this home those that the transcripts hold, unless the files know more;
    False: nobody knows the session. `folder`: the agent's working folder, as it sees it.

    The home is the agent's: no link in it is followed, wherever it leads. Raises OSError.
    """
    project = project_key_for_directory(folder)
    kept = transcripts.load(project, session_id, "")
    place = PurePosixPath(".claude/projects", project)
    here = _lines(home, place / f"{session_id}.jsonl")
    if here and here >= len(kept):
        return True
    if not kept:
        return False
    _write(home, place / f"{session_id}.jsonl", kept)
    for subpath in transcripts.subpaths(project, session_id):
        _write(home, place / session_id / f"{subpath}.jsonl", transcripts.load(project, session_id, subpath))
    return True


def _lines(home: Path, path: PurePosixPath) -> int:
    """0 where there is no such file."""
    try:
        at = _folder(home, path.parent, make=False)
        try:
            with os.fdopen(os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=at), "rb") as file:
                return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1024 * 1024), b""))
        finally:
            os.close(at)
    except OSError:
        return 0


def _write(home: Path, path: PurePosixPath, entries: Sequence[Mapping[str, Any]]) -> None:
    at = _folder(home, path.parent, make=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(path.name, flags, 0o600, dir_fd=at), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
    finally:
        os.close(at)


def _folder(home: Path, path: PurePosixPath, *, make: bool) -> int:
    """A descriptor of the folder; the caller closes it. Raises OSError for what is no folder, or a link."""
    at = os.open(home, _FOLDER)
    for part in path.parts:
        before = at
        try:
            if part == "..":
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
