"""HOMEs of external agents: where their sessions lie, from one claim of a step to the next.

    <root>/homes/<step>/   home.json   whose it is
                           home/       /home/agent to the agent
    <root>/homes/.gone-*   nobody's: about to be removed, or left over from a remover that was killed

A folder is deleted because its own record says that its step is over, never for its name or its age.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from orchestrator.core.task_id import spelled
from orchestrator.workspaces.locks import held
from orchestrator.workspaces.removal import remove_folder

OWNER: Final = "home.json"
_GONE: Final = ".gone-"
TARGET: Final = "/home/agent"
"""Not under /tmp: there Codex refuses its own helpers, and every command of it fails without a word."""


@dataclass(frozen=True, slots=True)
class HomeOwner:
    """The step whose agent lives there."""

    task_id: str
    step_id: str


class Homes:
    """The homes of one machine."""

    def __init__(self, root: Path) -> None:
        self._root = root / "homes"

    def open(self, owner: HomeOwner) -> Path:
        """The step's home on this machine's disk; made if it isn't there."""
        with held(self._root / ".lock"):
            folder = self._root / spelled(owner.step_id)
            if _read(folder) != owner:
                if folder.exists():
                    _set_aside(folder)  # the next sweep removes it
                folder.mkdir()
                new = folder / f"{OWNER}.new"
                new.write_text(json.dumps(asdict(owner)))
                new.rename(folder / OWNER)
            (folder / "home").mkdir(mode=0o700, exist_ok=True)
        return folder / "home"

    def remove(self, owner: HomeOwner) -> None:
        """The step is over."""
        folder = self._root / spelled(owner.step_id)
        if _read(folder) == owner:
            remove_folder(folder)

    def sweep(self, live: Callable[[Sequence[HomeOwner]], Collection[HomeOwner]]) -> list[str]:
        """Removes the homes whose step isn't live, and what a killed process left half made.

        The lock is held for as long as renaming takes: a home may hold gigabytes, and who opens one waits.
        """
        if not self._root.is_dir():
            return []
        dead = []
        with held(self._root / ".lock"):
            folders = [(at, _read(at)) for at in sorted(self._root.iterdir()) if at.is_dir()]
            kept = live([owner for _, owner in folders if owner is not None]) if folders else ()
            for folder, owner in folders:
                if owner is None or owner not in kept:
                    dead.append((folder.name, _set_aside(folder)))
        for _, folder in dead:
            remove_folder(folder)
        return [name for name, _ in dead]


def _set_aside(folder: Path) -> Path:
    """Under a name that no step has; what is there already stays there."""
    if folder.name.startswith(_GONE):
        return folder
    return folder.rename(folder.with_name(f"{_GONE}{uuid.uuid4().hex}"))


def _read(folder: Path) -> HomeOwner | None:
    if folder.name.startswith(_GONE):
        return None
    try:
        return HomeOwner(**json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None
