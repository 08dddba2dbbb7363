"""Real Codex and real Goose through real workers, gateway and model server: each fixes a bug, asks, is
cancelled, and survives its worker's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands import answer, intervene
from orchestrator.workspaces.kin import runs
from orchestrator.workspaces.programs import RUN_MARK
from tests.agent_world import BUGGY, FIX, fixing
from tests.agents_installed import installed
from tests.integration.gateway_server import REAL_KEY, serving_gateway, wired
from tests.integration.repositories import git, repository
from tests.integration.stack import Stack, WorkerProcess, until, worker
from tests.integration.test_secrets import files, in_redis, kept
from tests.model_server import RunningModel, model_server

MODELS = {
    "codex": "gpt-5.2-codex",
    "goose": "claude-sonnet-4-6",
    "claude-code": "claude-sonnet-4-6",
    "aider": "claude-sonnet-4-6",
}
PRICES = (
    '{"gpt-5.2-codex": {"input": "1", "output": "2"}, "claude-sonnet-4-6": {"input": "1", "output": "2"}}'
)
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Site:
    """One agent's installation, and the repository that it works on."""

    agent: str
    stack: Stack
    server: RunningModel
    source: Path

    def submit(self, **more: Any) -> None:
        request = {
            "description": "Fix add() in sums.py so that check.py passes.",
            "agent": {"type": self.agent},
            "model": MODELS[self.agent],
            "repository": {"path": str(self.source)},
            **more,
        }
        self.stack.call(request, task_id="t")

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        with worker(self.stack, app="orchestrator.tasks", pool="prefork", slots=1) as process:
            yield process

    def question(self) -> Mapping[str, Any]:
        asked = self.stack.healed(lambda: self.stack.ledger.rows(OPEN), "a question")
        return asked[0]

    def answer(self, question: Mapping[str, Any], text: str) -> None:
        self.stack.command(answer.answer, question["id"], text)

    def left(self) -> list[int]:
        """Processes of agents with this installation's homes."""
        return [pid for pid, _ in runs(RUN_MARK) if str(self.stack.folder) in _words(pid)]

    def result(self) -> str:
        """The fixed file as the task's branch has it."""
        (mirror,) = (self.stack.folder / "mirrors").glob("*.git")
        return git(mirror, "show", f"{self.stack.ledger.row('t')['tip_commit']}:sums.py")

    def events(self, name: str) -> list[Mapping[str, Any]]:
        found = self.stack.ledger.rows("SELECT name, data FROM events")
        return [row["data"] for row in found if row["name"] == name]


OPEN = "SELECT * FROM questions WHERE answered_at IS NULL AND withdrawn_at IS NULL"


def _words(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "mountinfo").read_text()
    except OSError:
        return ""


@contextmanager
def site(agent: str, stack: Stack, folder: Path, script: Mapping[str, Any]) -> Iterator[Site]:
    with model_server(script) as server:
        wiring = wired(stack.database_url, server.url, stack.folder, prices=PRICES)
        with serving_gateway(wiring) as gateway:
            known = replace(
                stack, more={"ORCHESTRATOR_GATEWAY_URL": gateway.url, "ORCHESTRATOR_PRICES": PRICES}
            )
            try:
                yield Site(agent, known, server, repository(folder / "source", BUGGY))
            finally:
                known.close()


@pytest.fixture(params=["codex", "goose"])
def agent(request: pytest.FixtureRequest) -> str:
    installed(request.param)
    return str(request.param)


def test_it_fixes_a_bug_and_no_secret_stays_anywhere(agent: str, stack: Stack, tmp_path: Path) -> None:
    with site(agent, stack, tmp_path, fixing()) as at:
        with at.worker() as process:
            at.submit(budget={"max_cost_usd": "1"})
            assert at.stack.ends("t") == "completed", process.text()
        assert "return a + b" in at.result()
        (step,) = at.stack.ledger.rows("SELECT summary FROM steps WHERE kind = 'agent'")
        assert step["summary"] == "Fixed add(): it subtracted. check.py passes now."
        used = at.stack.ledger.rows("SELECT * FROM usage")
        assert used
        assert {row["recorded"] for row in used} == {False}
        everything = {**kept(at.stack), **files(at.stack.folder / "artifacts"), "redis": in_redis(at.stack)}
        everything["log"] = process.text()
        assert [name for name, text in everything.items() if REAL_KEY in text or "ort_" in text] == []
        assert not list((at.stack.folder / "homes").glob("*/home"))
        assert at.left() == []


def test_a_question_holds_no_worker_and_its_answer_reaches_the_session(
    agent: str, stack: Stack, tmp_path: Path
) -> None:
    asks = {"text": "QUESTION FOR A PERSON: Shall add() add?\nOPTION: yes\nOPTION: no"}
    with site(agent, stack, tmp_path, fixing(asks)) as at:
        with at.worker():
            at.submit()
            question = at.question()
            assert question["text"] == "Shall add() add?"
            assert at.left() == []
        at.answer(question, "yes, it shall")
        with at.worker() as process:
            assert at.stack.ends("t") == "completed", process.text()
        assert "yes, it shall" in str(at.server.bodies()[-1])
        assert "return a + b" in at.result()


def test_a_cancel_leaves_no_process(agent: str, stack: Stack, tmp_path: Path) -> None:
    with site(agent, stack, tmp_path, fixing({"calls": [{"run": "setsid sleep 300"}]})) as at, at.worker():
        at.submit()
        until(lambda: at.events("tool"), "a tool call")
        assert at.left()
        at.stack.command(intervene.cancel, "t", reason="enough")
        assert at.stack.ends("t") == "cancelled"
        until(lambda: not at.left(), "no process")


def test_it_goes_on_in_its_session_when_its_worker_was_killed(
    agent: str, stack: Stack, tmp_path: Path
) -> None:
    begun = {"calls": [{"run": "echo half > half.txt"}]}, {"calls": [{"run": "sleep 300"}]}
    again = {"latest": ["You were interrupted"], "calls": [{"run": FIX}]}
    with site(agent, stack, tmp_path, fixing(*begun, again)) as at:
        with at.worker() as process:
            at.submit()
            until(
                lambda: at.stack.ledger.rows("SELECT 1 FROM tool_calls WHERE name = 'checkpoint'"),
                "a checkpoint",
            )
            children = (Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")).read_text()
            for pid in [process.process.pid, *map(int, children.split())]:
                os.kill(pid, signal.SIGKILL)
            process.process.wait()
        until(lambda: not at.left(), "no process of the killed worker")
        with at.worker() as process:
            status = at.stack.healed(lambda: _end(at), "the end")
            assert status == "completed", process.text()
        (step,) = at.stack.ledger.rows("SELECT attempt FROM steps WHERE kind = 'agent'")
        assert step["attempt"] == 2
        assert "return a + b" in at.result()
        assert "half.txt" in git(
            next((at.stack.folder / "mirrors").glob("*.git")),
            "show",
            "--stat",
            at.stack.ledger.row("t")["tip_commit"],
        )
        assert "You were interrupted" in str(at.server.bodies()[-1])


def _end(at: Site) -> str | None:
    row = at.stack.ledger.row("t")
    return str(row["status"]) if row["finished_at"] else None


def test_a_budget_that_is_used_up_parks_and_goes_on_when_it_is_raised(
    agent: str, stack: Stack, tmp_path: Path
) -> None:
    with site(agent, stack, tmp_path, fixing()) as at, at.worker() as process:
        at.submit(budget={"max_turns": 1})
        question = at.question()
        assert question["kind"] == "budget"
        assert at.left() == []
        at.answer(question, "20 turns")
        assert at.stack.ends("t") == "completed", process.text()
        assert "return a + b" in at.result()
