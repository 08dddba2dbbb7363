"""Claude Code's transcripts, kept beside its own files so that any host can resume its sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from claude_agent_sdk import SessionKey, SessionStoreEntry, project_key_for_directory

from orchestrator.agents import home_files
from orchestrator.agents.ports import Transcripts


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
    here = home_files.count_lines(home, place / f"{session_id}.jsonl")
    if here and here >= len(kept):
        return True
    if not kept:
        return False
    home_files.write(home, place / f"{session_id}.jsonl", _as_lines(kept))
    for subpath in transcripts.subpaths(project, session_id):
        entries = transcripts.load(project, session_id, subpath)
        home_files.write(home, place / session_id / f"{subpath}.jsonl", _as_lines(entries))
    return True


def _as_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (json.dumps(entry) + "\n" for entry in entries)
