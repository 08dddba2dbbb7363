"""coder/agentapi, spoken to as its description says."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents import agentapi
from orchestrator.agents.agentapi import AgentApi
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, Done, StopReason, Verdict, Waits, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.workspaces.workspace import Workspace
from tests.agent_world import AgentWorld
from tests.agentapi_server import Agent, AgentApiServer, agentapi_server
from tests.engine_world import Wire
from tests.integration.repositories import installation

Say = Callable[[str], None]


def fixer(message: str, say: Say) -> None:
    found = re.search(r"Your working folder is (\S+): go there", message)
    assert found, message
    say("Looking at sums.py")
    path = Path(found[1]) / "sums.py"
    path.write_text(path.read_text().replace("a - b", "a + b"))
    say("Looking at sums.py\nFixed add(): it subtracted.")


class World:
    def __init__(self, tmp_path: Path, url: str, key: str | None = None) -> None:
        self.inner = AgentWorld(installation(tmp_path / "root"), tmp_path, None, url, "none")  # type: ignore[arg-type]
        self.url, self.key = url, key

    def work(self, wire: Wire | None = None, **changes: Any) -> Verdict:
        inner = self.inner
        inner.fence += 1
        inner.wire = wire or Wire()
        agent = AgentApi(self.url, self.key, lambda _: inner.sessions, inner._workspace)
        return agent.work(inner.assignment(**changes), inner.wire)


@contextmanager
def world(tmp_path: Path, agent: Agent, **server: Any) -> Iterator[tuple[World, AgentApiServer]]:
    with agentapi_server(agent, **server) as served:
        yield World(tmp_path, served.url, server.get("key")), served


def test_it_works_in_the_folder_that_it_is_given(tmp_path: Path) -> None:
    with world(tmp_path, fixer) as (found, served):
        verdict = found.work()
        assert isinstance(verdict, Done), verdict
        assert "Fixed add()" in verdict.summary
        assert "a + b" in found.inner.file("sums.py")
        assert len([one for one in served.messages if one["role"] == "user"]) == 1
        assert any(kind == "text" for kind, _ in found.inner.wire.notes)
        assert found.inner.sessions.load().session.elapsed > timedelta(0), "its wall time is limited"


def test_a_key_for_what_stands_before_it_is_shown(tmp_path: Path) -> None:
    with world(tmp_path, fixer, key="the-key") as (found, _):
        assert isinstance(found.work(), Done)
        found.key = "another"
        verdict = found.work()
        assert isinstance(verdict, Broke)
        assert (verdict.code, verdict.error) == ("agentapi-unreachable", ErrorClass.AUTH)


def test_what_is_said_and_not_done_is_no_success(tmp_path: Path) -> None:
    with world(tmp_path, lambda _, say: say("All done.")) as (found, _):
        verdict = found.work()
        assert isinstance(verdict, Broke), verdict
        assert verdict.code == "agent-changed-nothing"


def test_an_agent_that_works_for_somebody_else_is_waited_for(tmp_path: Path) -> None:
    with world(tmp_path, fixer) as (found, served):
        served.become("running")
        verdict = found.work()
        assert isinstance(verdict, Waits), verdict
        assert verdict.on is WaitingOn.AGENT
        assert "busy" in str(verdict.detail)
        served.become("stable")
        assert isinstance(found.work(), Done)


class Fleeting:
    """A workspace of which a file goes while it is first read for a checkpoint."""

    def __init__(self, inner: Workspace) -> None:
        self._inner = inner
        self.missed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def checkpoint(self, label: str) -> str | None:
        if self.missed.is_set():
            return self._inner.checkpoint(label)
        self.missed.set()
        raise WorkspaceFault("workspace-git", "a file has just gone")


def test_a_checkpoint_that_is_missed_while_the_agent_writes_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agentapi, "CHECKPOINT_SECONDS", 0.0)
    opened: list[Fleeting] = []

    def patient(message: str, say: Say) -> None:
        assert opened[0].missed.wait(30)
        fixer(message, say)

    with world(tmp_path, patient) as (found, _):
        open_plain = found.inner._workspace

        @contextmanager
        def open_fleeting(assignment: Assignment) -> Iterator[Any]:
            with open_plain(assignment) as workspace:
                opened.append(Fleeting(workspace))
                yield opened[0]

        found.inner._workspace = open_fleeting  # type: ignore[method-assign]
        verdict = found.work()
        assert isinstance(verdict, Done), verdict
        assert any("A checkpoint was missed" in text for _, text in found.inner.wire.logs)


class Killed(BaseException):
    """The worker is gone in the middle."""


def test_a_claim_after_a_killed_worker_interrupts_what_it_left_and_goes_on(tmp_path: Path) -> None:
    over = threading.Event()
    rounds = iter([True, False])

    def patient(message: str, say: Say) -> None:
        if next(rounds):
            say("Thinking")
            assert over.wait(30)
        else:
            fixer(message, say)

    with world(tmp_path, patient) as (found, served):
        wire = Wire()
        keep = found.inner.sessions.keep_checkpoint
        wire.note = _killing  # type: ignore[method-assign]
        with pytest.raises(Killed):
            found.work(wire)
        assert found.inner.sessions.keep_checkpoint == keep
        served.on_raw = over.set
        verdict = found.work()
        assert isinstance(verdict, Done), verdict
        told = [one["content"] for one in served.messages if one["role"] == "user"]
        assert len(told) == 2
        assert "interrupted" in told[1]
        assert served.raw == ["\x03"]


def _killing(kind: str, data: Any) -> None:
    raise Killed(kind, data)


def test_a_soft_stop_waits_until_the_agent_rests(tmp_path: Path) -> None:
    stopped = threading.Event()

    def patient(message: str, say: Say) -> None:
        assert stopped.wait(30)
        fixer(message, say)

    with world(tmp_path, patient) as (found, served):
        wire = Wire()
        threading.Timer(0.5, lambda: (wire.stop.set(StopReason.DRAIN), stopped.set())).start()
        verdict = found.work(wire)
        assert isinstance(verdict, Done | Yielded), verdict
        assert served.raw == []
        assert "a + b" in found.inner.file("sums.py")


def test_a_cancel_presses_the_key_that_people_press(tmp_path: Path) -> None:
    over = threading.Event()
    with world(tmp_path, lambda _, say: (say("…"), over.wait(30))[0]) as (found, served):
        wire = Wire()
        threading.Timer(1.0, lambda: wire.stop.set(StopReason.CANCEL)).start()
        assert found.work(wire) == Yielded(StopReason.CANCEL)
        assert served.raw == ["\x03"]
        over.set()


def test_an_error_of_the_agent_is_a_failure_whatever_it_says(tmp_path: Path) -> None:
    def broken(message: str, say: Say) -> None:
        fixer(message, say)
        raise RuntimeError("the model is away")

    with world(tmp_path, broken) as (found, _):
        verdict = found.work()
        assert isinstance(verdict, Broke), verdict
        assert verdict.code == "agent-failed"
        assert "the model is away" in verdict.message


def test_where_no_server_is_the_step_breaks_and_may_be_tried_again(tmp_path: Path) -> None:
    verdict = World(tmp_path, "http://127.0.0.1:1").work()
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.error, verdict.retryable) == (
        "agentapi-unreachable",
        ErrorClass.NETWORK,
        True,
    )


def test_a_message_of_a_person_is_told_when_the_agent_rests(tmp_path: Path) -> None:
    """One that came before the first prompt goes with it, one that comes meanwhile is the next."""
    inboxes: list[list[str]] = []

    def attentive(message: str, say: Say) -> None:
        if "go there" not in message:
            say("Fixed the docstring, too.")
            return
        inboxes[0].append("And the docstring.")
        fixer(message, say)

    with world(tmp_path, attentive) as (found, served):
        inboxes.append(found.inner.sessions.inbox)
        found.inner.sessions.inbox.append("Mind the sign.")
        assert isinstance(found.work(), Done)
        told = ["".join(one["content"].split()) for one in served.messages if one["role"] == "user"]
    assert ["Mindthesign." in one for one in told] == [True, False]
    assert ["Andthedocstring." in one for one in told] == [False, True]
