"""The repository that tasks push to: away, hung, refusing, and changed by somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import text

from tests.benchmarks.faults.scene import Kinds, Scene
from tests.integration.repositories import commit, git, repository

_PUSHING: Final = text(
    "SELECT t.id FROM tasks t JOIN steps s ON s.task_id = t.id AND s.kind = 'integrate'"
    " WHERE t.push AND s.finished_at IS NULL ORDER BY t.id"
)
_HIDDEN: Final = "transfer.hideRefs"
_READ_FIRST: Final = "packed-refs"


def remote(folder: Path) -> Path:
    """A bare repository with one commit on `main`; somebody else's checkout of it is beside it."""
    theirs = repository(folder / "theirs", {"README.md": "A project.\n", "shared.txt": "nothing yet\n"})
    at = folder / "remote.git"
    git(folder, "clone", "-q", "--bare", str(theirs), str(at))
    git(at, "symbolic-ref", "HEAD", "refs/heads/main")
    git(at, "config", "gc.auto", "0")
    (at / _READ_FIRST).unlink(missing_ok=True)
    git(theirs, "push", "-q", str(at), "main")
    return at


def hang(at: Path) -> None:
    """Whoever reads its refs gets no answer, as from a server that has lost its own disk."""
    os.mkfifo(at / _READ_FIRST)


def answer(at: Path) -> None:
    """Those who wait find an empty file."""
    door = os.open(at / _READ_FIRST, os.O_RDWR | os.O_NONBLOCK)
    (at / _READ_FIRST).unlink()
    os.close(door)


def refuse(at: Path) -> None:
    git(at, "config", _HIDDEN, "refs/heads/agent")


def allow(at: Path) -> None:
    git(at, "config", "--unset", _HIDDEN)


@dataclass
class RemoteFaults:
    scene: Scene
    _troubled: bool = field(default=False)

    @property
    def kinds(self) -> Kinds:
        return {
            "remote_gone": (1, self.gone),
            "remote_hangs": (2, self.hangs),
            "remote_refuses": (1, self.refuses),
            "remote_moves": (2, self.moves),
        }

    def gone(self) -> bool:
        at, away = self.scene.remote, self.scene.remote.with_suffix(".away")
        return self._for_a_while(lambda: at.rename(away), lambda: away.rename(at))

    def hangs(self) -> bool:
        return self._for_a_while(lambda: hang(self.scene.remote), lambda: answer(self.scene.remote))

    def refuses(self) -> bool:
        """It can be read, and takes no branch of ours."""
        return self._for_a_while(lambda: refuse(self.scene.remote), lambda: allow(self.scene.remote))

    def moves(self) -> bool:
        """`main` goes on, or is rewritten, and somebody takes the name of a branch that will be pushed."""
        scene, at = self.scene, self.scene.remote
        pushing = self._pushing()
        if self._troubled or not pushing:
            return False
        theirs = at.parent / "theirs"
        if scene.chance.random() < 0.5:
            git(theirs, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
        foreign = commit(theirs, {"README.md": f"Changed {len(scene.foreign)} times.\n"})
        git(theirs, "push", "-q", "--force", str(at), "main")
        task = scene.chance.choice(pushing)
        if not git(at, "for-each-ref", f"refs/heads/agent/{task}") and scene.chance.random() < 0.5:
            git(at, "update-ref", f"refs/heads/agent/{task}", foreign, "0" * 40)
            scene.foreign[task] = foreign
        return True

    def _for_a_while(self, hurt: Callable[[], object], mend: Callable[[], object]) -> bool:
        if self._troubled or not self._pushing():
            return False
        hurt()
        self._troubled = True

        def undo() -> None:
            mend()
            self._troubled = False

        self.scene.repairs.surely(self.scene.chance.uniform(0.5, 3) * self.scene.lease, undo)
        return True

    def _pushing(self) -> list[str]:
        with self.scene.wiring.engine.connect() as connection:
            return [row.id for row in connection.execute(_PUSHING)]
