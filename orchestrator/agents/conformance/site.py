"""One step of one repository without a database: claims come one after the other, and their records are
files, so that they outlast a killed process."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from orchestrator.agents.external import Adapter, ExternalAgent
from orchestrator.agents.ports import Kept, Session, Transcripts
from orchestrator.core.assignment import Assignment, Limits, ModelAccess, Stop
from orchestrator.core.verdict import Verdict
from orchestrator.engine.ports import Heard
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.kin import marked
from orchestrator.workspaces.programs import RUN_MARK
from orchestrator.workspaces.workspace import AttemptOwner, Workspace

STEP: Final = "conformance"
FILES: Final[Mapping[str, str]] = {
    "README.md": "# Sums\n",
    "sums.py": 'def add(a: int, b: int) -> int:\n    """The sum of two numbers."""\n    return a - b\n',
    "check.py": "from sums import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('all good')\n",
}


class Model(Protocol):
    """The local model server."""

    @property
    def url(self) -> str: ...

    def play(self, script: Mapping[str, Any], /) -> None: ...

    def fault(self, kind: str, times: int, /) -> None: ...

    def calls(self) -> int:
        """How many requests there were since the last script."""


class Files:
    """The sessions of the step, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _read(self) -> tuple[Kept, list[str], list[str]]:
        if not self._path.exists():
            return Kept(), [], []
        found: Any = pickle.loads(self._path.read_bytes())  # noqa: S301 - written here
        return found  # type: ignore[no-any-return]

    def _write(self, *state: Any) -> None:
        new = self._path.with_suffix(".new")
        new.write_bytes(pickle.dumps(state))
        new.replace(self._path)

    def load(self) -> Kept:
        return self._read()[0]

    def save(self, session: Session, /) -> None:
        kept, *rest = self._read()
        self._write(replace(kept, session=session), *rest)

    def has_messages(self) -> bool:
        return bool(self._read()[1])

    def hear(self, before_prompt: int, /) -> Sequence[Heard]:
        kept, inbox, checkpoints = self._read()
        heard = tuple(Heard(before_prompt, text) for text in inbox)
        if heard:
            self._write(replace(kept, heard=(*kept.heard, *heard)), [], checkpoints)
        return heard

    def keep_checkpoint(self, number: int, commit: str, /) -> None:
        del number
        kept, inbox, checkpoints = self._read()
        self._write(kept, inbox, [*checkpoints, commit])

    @property
    def checkpoint(self) -> str | None:
        return next(reversed(self._read()[2]), None)

    def answer(self, text: str) -> None:
        kept, *rest = self._read()
        asked = kept.session.asked
        if asked is not None:
            self._write(replace(kept, answers={**kept.answers, asked.call_id: text}), *rest)

    def say(self, text: str) -> None:
        """A person does."""
        kept, inbox, *rest = self._read()
        self._write(kept, [*inbox, text], *rest)


class FileTranscripts:
    """Transcripts of the step, in one file beside its sessions."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _read(self) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
        found: Any = pickle.loads(self._path.read_bytes()) if self._path.exists() else {}  # noqa: S301 - ours
        return found  # type: ignore[no-any-return]

    def append(
        self, project: str, session: str, subpath: str, entries: Sequence[Mapping[str, Any]], /
    ) -> None:
        found = self._read()
        found.setdefault((project, session, subpath), []).extend(dict(entry) for entry in entries)
        new = self._path.with_suffix(".new")
        new.write_bytes(pickle.dumps(found))
        new.replace(self._path)

    def load(self, project: str, session: str, subpath: str, /) -> Sequence[Mapping[str, Any]]:
        return self._read().get((project, session, subpath), [])

    def subpaths(self, project: str, session: str, /) -> Sequence[str]:
        return [key[2] for key in self._read() if key[:2] == (project, session) and key[2]]


@dataclass
class Ear:
    """A link that keeps what goes over it. `on_note` sees each note first."""

    stop: Stop = field(default_factory=Stop)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    on_note: Callable[[str, Mapping[str, Any]], None] = lambda _kind, _data: None

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        self.on_note(kind, data)
        self.notes.append((kind, data))

    def log(self, stream: str, text: str) -> None:
        self.lines.append(f"{stream}: {text}")

    @property
    def tools(self) -> list[str]:
        return [str(data.get("name")) for kind, data in self.notes if kind == "tool"]

    @property
    def text(self) -> str:
        return "".join(self.lines)


class Site:
    """`make` makes the adapter with the step's transcripts."""

    def __init__(
        self,
        workspaces: Workspaces,
        folder: Path,
        make: Callable[[Callable[[Assignment], Transcripts]], Adapter],
        model: Model,
        model_name: str,
    ) -> None:
        self.model = model
        self._workspaces = workspaces
        self._model_name = model_name
        self.files = Files(folder / "sessions")
        transcripts = FileTranscripts(folder / "transcripts")
        self._adapter = make(lambda _: transcripts)
        self._base = workspaces.fetch(str(_repository(folder / "source")), None)
        self.ear = Ear()
        self.fence = 0

    def work(self, ear: Ear | None = None, **changes: Any) -> Verdict:
        """One claim."""
        self.fence += 1
        self.ear = ear or Ear()
        agent = ExternalAgent(
            self._adapter,
            lambda _: ModelAccess(self.model.url, "token-of-this-run"),
            lambda _: self.files,
            self._workspace,
            lambda: self._workspaces.homes,
        )
        return agent.work(self._assignment(**changes), self.ear)

    def read(self, name: str) -> str:
        with self._workspace(self._assignment()) as workspace:
            return workspace.read(name) if workspace.has(name) else ""

    def left(self) -> list[int]:
        """Processes of the last claim's run, whoever carried it out."""
        return [pid for owner in {os.getpid(), self.worker} for pid in marked(self._mark(owner))]

    worker: int = 0
    """The process that carried out the last claim, if that was another one."""

    def _mark(self, owner: int) -> str:
        return f"{RUN_MARK}={owner}-{STEP}-{self.fence}"

    @contextmanager
    def _workspace(self, _: Assignment) -> Iterator[Workspace]:
        owner = AttemptOwner(STEP, STEP, 1, 1, "boot")
        base, checkpoint = self._base, self.files.checkpoint
        yield self._workspaces.open(owner, base.mirror, base.commit, checkpoint=checkpoint)

    def _assignment(self, **changes: Any) -> Assignment:
        known: dict[str, Any] = {
            "tenant_id": "default",
            "task_id": STEP,
            "workflow_id": STEP,
            "step_id": STEP,
            "step_key": "work",
            "step_number": 1,
            "step_total": 1,
            "kind": "agent",
            "attempt": 1,
            "fence": self.fence,
            "task_description": "The sums are wrong.",
            "description": "Fix add() in sums.py so that check.py passes.",
            "agent_type": self._adapter.name,
            "model": self._model_name,
            "limits": Limits(),
        }
        return Assignment(**{**known, **changes})


def _repository(at: Path) -> Path:
    at.mkdir(parents=True)
    for name, text in FILES.items():
        (at / name).write_text(text)
    who = ("-c", "user.name=conformance", "-c", "user.email=conformance@example.invalid")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "A sample")):
        subprocess.run(["git", "-C", str(at), *words], check=True, capture_output=True, timeout=60)
    return at
