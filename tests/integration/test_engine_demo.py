"""The shipped recordings, replayed by the real loop with real tools on the sample repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents.engine import EngineAgent
from orchestrator.agents.models import Models
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke, Done, NeedsInput, Verdict
from tests.engine_world import FileJournal, FolderWorkspace, Killed, Wire, assignment, no_live_model

DATA = Path(__file__).parent.parent.parent / "orchestrator" / "data"
KEEP, RAISE = "Keep 0", "Raise a ValueError"


@dataclass
class Demo:
    """A plan, worked step by step as its needs allow; each step in a folder of its own."""

    name: str
    folder: Path
    faults: Mapping[str, Any] = field(default_factory=dict)
    done: dict[str, tuple[Done, Path]] = field(default_factory=dict)
    claimed: set[str] = field(default_factory=set)

    @property
    def plan(self) -> Mapping[str, Any]:
        return dict(json.loads((DATA / "recordings" / self.name / "plan.json").read_text()))

    def agent(self) -> EngineAgent:
        return EngineAgent(
            model=Models(DATA / "recordings", live=no_live_model).choose,
            open_journal=self.journal,
            open_workspace=self.workspace,
        )

    def journal(self, step: Assignment) -> FileJournal:
        """The first claim of each step meets the faults."""
        faults = {} if step.step_key in self.claimed else self.faults
        self.claimed.add(step.step_key)
        return FileJournal(self.folder / f"{step.step_key}.jsonl", **faults)

    @contextmanager
    def workspace(self, step: Assignment) -> Iterator[FolderWorkspace]:
        root = self.folder / step.step_key
        if not root.exists():
            self.start(root, next(given for given in self.plan["steps"] if given["id"] == step.step_key))
        yield FolderWorkspace(root)

    def start(self, root: Path, given: Mapping[str, Any]) -> None:
        """The sample, with each file that a needed step changed."""
        sample = DATA / "samples" / self.plan["sample"]
        shutil.copytree(sample, root)
        for _, tree in (self.done[name] for name in given["needs"]):
            for file in (path.relative_to(tree) for path in tree.rglob("*") if path.is_file()):
                if (tree / file).read_bytes() != (sample / file).read_bytes():
                    shutil.copyfile(tree / file, root / file)

    def claim(self, given: Mapping[str, Any], **changes: Any) -> Verdict:
        step = assignment(
            step_key=given["id"],
            task_description=self.plan["description"],
            description=given["description"],
            spec=given["spec"],
            context={"needs": {name: self.done[name][0].summary for name in given["needs"]}},
            **changes,
        )
        return self.agent().work(step, Wire())

    def work(self, answer: str | None = None) -> dict[str, tuple[Done, Path]]:
        for given in self.plan["steps"]:
            try:
                verdict = self.claim(given)
            except Killed:
                verdict = self.claim(given)
            if isinstance(verdict, NeedsInput):
                assert answer in verdict.ask.options
                FileJournal(self.folder / f"{given['id']}.jsonl").answer(verdict.ask.call_id, str(answer))
                verdict = self.claim(given)
            assert isinstance(verdict, Done), verdict
            self.done[given["id"]] = verdict, self.folder / given["id"]
        return self.done


Make = Callable[..., Demo]


@pytest.fixture
def demo(tmp_path: Path) -> Make:
    def make(name: str, folder: str = "demo", **how: Any) -> Demo:
        (tmp_path / folder).mkdir()
        return Demo(name, tmp_path / folder, **how)

    return make


def failing(tree: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-B", "run_tests.py"], cwd=tree, capture_output=True, text=True, check=False
    )
    return ran.stdout.splitlines()[-1]


def test_the_sample_fails_three_tests_and_the_plan_repairs_them(demo: Make) -> None:
    assert failing(DATA / "samples" / "textstats") == "10 tests, 3 failed"
    trees = {key: tree for key, (_, tree) in demo("fix-bug").work().items()}
    assert failing(trees["fix_tokens"]) == "10 tests, 1 failed"
    assert failing(trees["fix_stats"]) == "10 tests, 2 failed"
    assert failing(trees["verify"]) == "10 tests, 0 failed"
    assert "[\"don't\", 'panic'" in (trees["document"] / "README.md").read_text()


def test_the_plan_forks_joins_and_goes_on(demo: Make) -> None:
    needs = {step["id"]: step["needs"] for step in demo("fix-bug").plan["steps"]}
    assert needs == {
        "reproduce": [],
        "fix_tokens": ["reproduce"],
        "fix_stats": ["reproduce"],
        "verify": ["fix_tokens", "fix_stats"],
        "document": ["verify"],
    }


@pytest.mark.parametrize("answer", [KEEP, RAISE])
def test_a_question_may_be_answered_either_way(demo: Make, answer: str) -> None:
    done = demo("ask").work(answer)
    assert done["settle"][0].result == {"decided": answer}
    raises = "raise ValueError" in (done["settle"][1] / "textstats" / "stats.py").read_text()
    assert raises == (answer == RAISE)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("die_at", [1, 2, 3, 5, 6])
def test_each_step_survives_a_kill_and_ends_the_same(demo: Make, die_at: int, after: bool) -> None:
    done = demo("fix-bug", faults={"die_at": die_at, "after": after}).work()
    assert failing(done["document"][1]) == "10 tests, 0 failed"
    assert "[\"don't\", 'panic'" in (done["document"][1] / "README.md").read_text()
    assert done["verify"][0].result == {"tests": 10, "failed": 0}


def test_a_request_that_departs_breaks_the_step_for_good(demo: Make) -> None:
    first = dict(demo("fix-bug").plan["steps"][0])
    verdict = demo("fix-bug", "other").claim({**first, "description": "Do something else."})
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.error, verdict.retryable) == (
        "recording-mismatch",
        ErrorClass.RECORDING,
        False,
    )
    assert "+Do something else." in verdict.message


def test_a_recording_that_is_not_there_is_a_verdict(demo: Make) -> None:
    first = dict(demo("fix-bug").plan["steps"][0])
    verdict = demo("fix-bug", "other").claim({**first, "spec": {"recording": "../../secrets"}})
    assert isinstance(verdict, Broke)
    assert verdict.code == "recording-unknown"


def test_every_recorded_reply_says_that_no_model_wrote_it() -> None:
    for path in (DATA / "recordings").rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "written by hand" in json.loads(line)["note"]
