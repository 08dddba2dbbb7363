"""The engine in real checkouts, sandboxed and not: the demonstration, its merges, its kills and resumes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents.engine import EngineAgent
from orchestrator.agents.models import Models
from orchestrator.core.assignment import Assignment
from orchestrator.core.verdict import Done, StopReason, Yielded
from orchestrator.engine import calls, loop, ports
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.mirrors import Base
from orchestrator.workspaces.workspace import Workspace
from tests.engine_world import FileJournal, Killed, Script, Wire, assignment, call, done, no_live_model
from tests.integration.repositories import git, installation, owner, repository, without_bubblewrap

DATA = Path(__file__).parent.parent.parent / "orchestrator" / "data"
PLAN = json.loads((DATA / "recordings" / "fix-bug" / "plan.json").read_text())
SAMPLE = DATA / "samples" / "textstats"
FILES = {
    path.relative_to(SAMPLE).as_posix(): path.read_text()
    for path in sorted(SAMPLE.rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
}


@pytest.fixture(params=["bubblewrap", "none"])
def workspaces(request: pytest.FixtureRequest, tmp_path: Path) -> Workspaces:
    if request.param == "none":
        return installation(tmp_path / "root", sandbox=without_bubblewrap(tmp_path / "plain"))
    made = installation(tmp_path / "root")
    if made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    return made


@pytest.fixture
def base(workspaces: Workspaces, tmp_path: Path) -> Base:
    return workspaces.fetch(str(repository(tmp_path / "source", FILES)), None)


class Run:
    """The plan's steps, each in its own checkout on the merge of what it needs."""

    def __init__(self, workspaces: Workspaces, base: Base, folder: Path, **faults: Any) -> None:
        self.workspaces = workspaces
        self.base = base
        self.folder = folder
        self.faults = faults
        self.summaries: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self.claims: list[str] = []

    def start(self, needs: list[str]) -> str:
        """On the results of all that came before: later steps build on what earlier ones left."""
        before = [self.commits[key] for key in self._reach(needs) if key in self.commits]
        return self.workspaces.start_commit(self.base.mirror, self.base.commit, before)

    def _reach(self, needs: list[str]) -> list[str]:
        steps = {step["id"]: step["needs"] for step in PLAN["steps"]}
        found: list[str] = []
        for key in needs:
            found += [near for near in [*self._reach(steps[key]), key] if near not in found]
        return found

    def journal(self, step: Assignment) -> FileJournal:
        self.claims.append(step.step_key)
        faults = self.faults if self.claims.count(step.step_key) == 1 else {}
        return FileJournal(self.folder / f"{step.step_key}.jsonl", **faults)

    @contextmanager
    def workspace(self, step: Assignment) -> Iterator[Workspace]:
        given = next(given for given in PLAN["steps"] if given["id"] == step.step_key)
        at = self.start(given["needs"])
        opened = self.workspaces.open(owner(step.step_key), self.base.mirror, at)
        yield opened
        commit = opened.result(step.step_key, {"Step": step.step_key}, at)
        if commit is not None:
            self.commits[step.step_key] = commit

    def work(self, given: Mapping[str, Any]) -> Done:
        agent = EngineAgent(
            Models(DATA / "recordings", live=no_live_model).choose, self.journal, self.workspace
        )
        step = assignment(
            step_key=given["id"],
            task_description=PLAN["description"],
            description=given["description"],
            spec=given["spec"],
            context={"needs": {key: self.summaries[key] for key in given["needs"]}},
        )
        try:
            verdict = agent.work(step, Wire())
        except Killed:
            verdict = agent.work(step, Wire())
        assert isinstance(verdict, Done), verdict
        self.summaries[given["id"]] = verdict.summary
        return verdict


def finished(run: Run) -> tuple[dict[str, Done], str]:
    """Works the whole plan; the verdicts, and the commit that holds everything."""
    verdicts = {given["id"]: run.work(given) for given in PLAN["steps"]}
    return verdicts, run.start([step["id"] for step in PLAN["steps"]])


def test_the_demonstration_runs_in_real_checkouts(workspaces: Workspaces, base: Base, tmp_path: Path) -> None:
    run = Run(workspaces, base, tmp_path)
    verdicts, tip = finished(run)
    assert verdicts["verify"].result == {"tests": 10, "failed": 0}
    assert set(run.commits) == {"fix_tokens", "fix_stats", "document"}
    mirror = workspaces.mirrors.git(base.mirror)
    changed = mirror.text("diff", "--name-only", base.commit, tip).splitlines()
    assert changed == ["README.md", "textstats/stats.py", "textstats/tokens.py"]


@pytest.mark.parametrize("die_at", [6, 8])
def test_a_killed_step_goes_on_in_its_checkout(
    workspaces: Workspaces, base: Base, tmp_path: Path, die_at: int
) -> None:
    run = Run(workspaces, base, tmp_path, die_at=die_at)
    verdicts, _ = finished(run)
    assert verdicts["verify"].result == {"tests": 10, "failed": 0}
    assert len(run.claims) > len(PLAN["steps"]), "something was killed"


def test_the_workspaces_satisfy_the_port(workspaces: Workspaces, base: Base) -> None:
    port: ports.Workspace = workspaces.open(owner("port"), base.mirror, base.commit)
    assert port.read("README.md", None, None) == (SAMPLE / "README.md").read_text()


def test_a_command_that_a_stop_kills_is_left_unfinished(
    workspaces: Workspaces, base: Base, tmp_path: Path
) -> None:
    wire = Wire()
    script = Script([[call("a", "run_command", command="echo begun; sleep 60")], [done()]])
    log = wire.log

    def stop_when_begun(stream: str, text: str) -> None:
        log(stream, text)
        if "begun" in text:
            threading.Thread(target=wire.stop.set, args=(StopReason.SHUTDOWN,)).start()

    wire.log = stop_when_begun  # type: ignore[method-assign]
    opened = workspaces.open(owner("stopped"), base.mirror, base.commit)
    journal = FileJournal(tmp_path / "journal")
    verdict = loop.work(assignment(), wire, model=script, journal=journal, workspace=opened)
    assert verdict == Yielded(StopReason.SHUTDOWN)
    assert journal.load().calls[0].result is None
    verdict = loop.work(assignment(), Wire(), model=script, journal=journal, workspace=opened)
    assert verdict == Done("Done.")
    told = script.requests[1]["messages"][-1]["content"][0]["content"]
    assert told == calls.INTERRUPTED.text


def test_the_sample_is_a_clean_repository(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", FILES)
    assert git(source, "status", "--porcelain") == ""
