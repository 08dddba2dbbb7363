"""A world for an external agent without a database: a real repository, workspace, home and model server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.agents.external import Adapter, ExternalAgent
from orchestrator.agents.launch import is_run_of
from orchestrator.agents.ports import Kept, Session
from orchestrator.core.assignment import Assignment, ModelAccess
from orchestrator.core.verdict import Verdict
from orchestrator.engine.ports import Heard
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.homes import HomeOwner
from orchestrator.workspaces.kin import runs
from orchestrator.workspaces.programs import RUN_MARK
from orchestrator.workspaces.workspace import AttemptOwner, Workspace
from tests.engine_world import Wire, assignment
from tests.integration.repositories import repository
from tests.model_server import RunningModel

STEP = "step-1"
BUGGY = {
    "README.md": "# Sums\n",
    "sums.py": 'def add(a: int, b: int) -> int:\n    """The sum of two numbers."""\n    return a - b\n',
    "check.py": "from sums import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('all good')\n",
}
FIX = "sed -i 's/a - b/a + b/' sums.py"
CHECK = "python3 check.py"


class MemorySessions:
    """Sessions in memory: what a claim left is what the next one finds."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.checkpoints: list[str] = []
        self.inbox: list[str] = []
        self.saved: list[Session] = []

    def load(self) -> Kept:
        return self.kept

    def save(self, session: Session, /) -> None:
        self.saved.append(session)
        self.kept = replace(self.kept, session=session)

    def has_messages(self) -> bool:
        return bool(self.inbox)

    def hear(self, before_prompt: int, /) -> Sequence[Heard]:
        heard = tuple(Heard(before_prompt, text) for text in self.inbox)
        self.inbox.clear()
        self.kept = replace(self.kept, heard=(*self.kept.heard, *heard))
        return heard

    def keep_checkpoint(self, number: int, commit: str, /) -> None:
        del number
        self.checkpoints.append(commit)

    def answer(self, text: str) -> None:
        asked = self.kept.session.asked
        assert asked is not None
        self.kept = replace(self.kept, answers={**self.kept.answers, asked.call_id: text})


class AgentWorld:
    """One step of one repository. Each `work` is a claim; the fence counts them."""

    server: RunningModel

    def __init__(
        self,
        workspaces: Workspaces,
        folder: Path,
        adapter: Adapter,
        url: str,
        model: str,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`more`: files of the repository."""
        self.workspaces = workspaces
        self.base = workspaces.fetch(str(repository(folder / "source", BUGGY | dict(more or {}))), None)
        self.adapter = adapter
        self.url = url
        self.model = model
        self.sessions = MemorySessions()
        self.fence = 0
        self.wire = Wire()

    def assignment(self, **changes: Any) -> Assignment:
        return assignment(
            step_id=STEP,
            fence=self.fence,
            model=self.model,
            task_description="The sums are wrong.",
            description="Fix add() in sums.py so that check.py passes.",
            **changes,
        )

    @contextmanager
    def _workspace(self, _: Assignment) -> Iterator[Workspace]:
        owner = AttemptOwner("task-1", STEP, 1, 1, "boot")
        checkpoint = self.sessions.checkpoints[-1] if self.sessions.checkpoints else None
        yield self.workspaces.open(owner, self.base.mirror, self.base.commit, checkpoint=checkpoint)

    def work(self, wire: Wire | None = None, **changes: Any) -> Verdict:
        self.fence += 1
        self.wire = wire or Wire()
        agent = ExternalAgent(
            self.adapter,
            lambda _: ModelAccess(self.url, "run-token"),
            lambda _: self.sessions,
            self._workspace,
            lambda: self.workspaces.homes,
        )
        return agent.work(self.assignment(**changes), self.wire)

    def file(self, name: str) -> str:
        with self._workspace(self.assignment()) as workspace:
            return workspace.read(name)

    def names(self) -> list[str]:
        """Of all files, as they are now."""
        with self._workspace(self.assignment()) as workspace:
            paths = (at.relative_to(workspace.tree) for at in workspace.tree.rglob("*") if at.is_file())
            return sorted(map(str, paths))

    @property
    def home(self) -> Path:
        return self.workspaces.homes.open(HomeOwner(self.assignment().task_id, STEP))

    @property
    def tools(self) -> list[str]:
        return [
            str(data["name"])
            for kind, data in self.wire.notes
            if kind == "tool" and data["state"] == "started"
        ]

    def left(self) -> list[int]:
        """Processes of the step's agent that live."""
        return [pid for pid, run_id in runs(RUN_MARK) if is_run_of(self.home, run_id)]

    def lose_home(self) -> None:
        """As on another machine, which has no home of this step."""
        self.workspaces.homes.remove(HomeOwner(self.assignment().task_id, STEP))

    def log(self) -> str:
        return "".join(text for _, text in self.wire.logs)


def fixing(
    *more: dict[str, Any], text: str = "Fixed add(): it subtracted. check.py passes now."
) -> dict[str, Any]:
    """A script: repair, check, say so; `more` turns come first."""
    turns = [*more, {"calls": [{"run": FIX}]}, {"calls": [{"run": CHECK}]}, {"text": text}]
    return {"conversations": [{"name": "fix", "turns": turns}]}


def shown(value: object) -> str:
    return json.dumps(value, indent=1, default=str)
