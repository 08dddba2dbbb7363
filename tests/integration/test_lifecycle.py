"""Random lives of a task on real rows: whatever happens, the invariants hold, and it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.commands import answer, intervene
from orchestrator.core.errors import Conflict
from orchestrator.core.states import TERMINAL, Event, WaitingOn
from orchestrator.db import bounds, claims, sweep, transitions
from orchestrator.db.claims import Claimed
from orchestrator.db.waking import due, wake
from tests.integration.ledger import LEASE, TENANT, Ledger, migrate, opened, step
from tests.servers import PostgresServer

PLANS = (
    (step("a"),),
    (step("a"), step("b", "a"), step("c", "b")),
    (step("a"), step("b"), step("c", "a", "b")),
    (step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"), step("e")),
)
ERROR = {"code": "no-luck", "message": "It did not work.", "recoverable": True}
_serial = itertools.count(1)


class Life(RuleBasedStateMachine):
    """One task, the workers that think they hold its steps (some are zombies), people, and the sweep."""

    ledger: ClassVar[Ledger]

    @initialize(plan=st.sampled_from(PLANS), going_on=st.booleans(), start=st.booleans())
    def submit(self, plan: Any, going_on: bool, start: bool) -> None:
        self.task = f"life{next(_serial)}"
        mode = "continue" if going_on else "stop"
        self.ledger.task(self.task, *plan, on_step_failure=mode, start=start)
        self.held: list[Claimed] = []
        self.effects: dict[str, int] = {}
        """Step id → the fence that completed it."""

    def steps(self) -> list[Any]:
        return list(self.ledger.steps(self.task).values())

    def one_of(self, number: int) -> Any:
        steps = self.steps()
        return steps[number % len(steps)]

    @rule(number=st.integers(0, 9))
    def claim(self, number: int) -> None:
        found = self.ledger.claim(self.one_of(number), signature={"task": "x"})
        if isinstance(found, Claimed):
            self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        word=st.sampled_from(
            ["succeed", "succeed", "fail", "retry", "ask", "wait", "pause", "give_back", "escalate"]
        ),
    )
    def speak(self, data: st.DataObject, word: str) -> None:
        """Zombies speak as well: they are never taken off the list for losing their lease."""
        who = data.draw(st.sampled_from(self.held))
        ref, fence = who.step, who.fence
        row = self.ledger.step(ref)
        holds = row["fence"] == fence and row["lease_until"] is not None
        match word:
            case "succeed":
                said = self.ledger.succeed(who)
            case "fail":
                said = self.ledger.fail(who)
            case "retry":
                said = self.ledger.do(
                    lambda c: transitions.retry_later(c, ref, fence, ERROR, timedelta(hours=1))
                )
            case "ask":
                said = self.ledger.ask(who, f"call_{fence}")
            case "wait":
                said = self.ledger.do(
                    lambda c: transitions.park(
                        c, ref, fence, Event.WAIT, WaitingOn.RATE_LIMIT, {}, wake_after=timedelta(0)
                    )
                )
            case "escalate":
                said = self.ledger.do(
                    lambda c: transitions.park(c, ref, fence, Event.ASK, WaitingOn.ESCALATION, {})
                )
            case "pause":
                said = self.ledger.do(lambda c: transitions.obey_pause(c, ref, fence))
            case _:
                said = self.ledger.do(lambda c: transitions.give_back(c, ref, fence, "slice"))
        assert (said is not None) is holds, (word, row)
        if word == "succeed" and said is not None:
            assert ref.step_id not in self.effects
            self.effects[ref.step_id] = fence

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def stop_when_asked(self, data: st.DataObject) -> None:
        """A worker that hears of a cancel at its heartbeat ends the step."""
        who = data.draw(st.sampled_from(self.held))
        beat = self.ledger.do(lambda c: claims.heartbeat(c, who.step, who.fence, LEASE, moved=True))
        if beat is not None and beat.cancel:
            ended = self.ledger.do(lambda c: transitions.cancel_step(c, who.step, who.fence, "asked"))
            assert ended is not None

    @rule(number=st.integers(0, 9), uncounted=st.booleans())
    def lose_the_worker(self, number: int, uncounted: bool) -> None:
        ref = self.one_of(number)
        if self.ledger.step(ref)["lease_until"] is not None:
            assert self.ledger.expire(ref, uncounted=uncounted) is not None

    @rule(number=st.integers(0, 9))
    def time_passes(self, number: int) -> None:
        ref = self.one_of(number)
        row = self.ledger.step(ref)
        if row["not_before"] is None:
            return
        self.ledger.run("UPDATE steps SET not_before = now() WHERE id = :id", id=ref.step_id)
        if row["status"] == "queued":
            self.ledger.do(lambda c: due(c, ref))
        else:
            self.ledger.do(lambda c: wake(c, ref, Event.WAKE, {}))

    @rule(number=st.integers(0, 9))
    def answer(self, number: int) -> None:
        found = self.ledger.rows(
            "SELECT id FROM questions WHERE task_id = :task ORDER BY asked_at", task=self.task
        )
        if found:
            question = found[number % len(found)]["id"]
            with suppress(Conflict):
                self.ledger.do(lambda c: answer.answer(c, TENANT, question, "left", by="me"))

    @rule(verb=st.sampled_from([intervene.pause, intervene.resume, intervene.resume]))
    def command(self, verb: Any) -> None:
        with suppress(Conflict):
            self.ledger.do(lambda c: verb(c, TENANT, self.task, by="me"))

    @rule(dice=st.integers(0, 3))
    def cancel(self, dice: int) -> None:
        if not dice:
            with suppress(Conflict):
                self.ledger.do(lambda c: intervene.cancel(c, TENANT, self.task, by="me"))

    @rule(dice=st.integers(0, 3), grace=st.booleans())
    def meet_the_deadline(self, dice: int, grace: bool) -> None:
        """One sweep after it; then it is moved, or nothing else would ever happen."""
        if dice:
            return
        self.ledger.run(
            "UPDATE tasks SET created_at = now() - interval '1 day', deadline = now() - interval '1 minute'"
            " WHERE id = :task",
            task=self.task,
        )
        late = timedelta(seconds=0 if grace else 3600)
        for one in self.ledger.do(lambda c: bounds.late_steps(c, late)):
            self.ledger.do(lambda c, one=one: bounds.end_late(c, one.step))  # type: ignore[misc]
        self.ledger.run("UPDATE tasks SET deadline = NULL WHERE id = :task", task=self.task)

    @rule(dice=st.integers(0, 2))
    def retry(self, dice: int) -> None:
        if not dice:
            with suppress(Conflict):
                self.ledger.do(lambda c: intervene.retry(c, TENANT, self.task, by="me"))

    @invariant()
    def rows_are_consistent(self) -> None:
        self.ledger.assert_consistent(self.task)
        for ref in self.steps():
            row = self.ledger.step(ref)
            assert row["attempt"] <= row["max_attempts"]
            if row["status"] == "completed":
                assert self.effects.get(ref.step_id) == row["fence"], "one effect, by the latest claim"

    def teardown(self) -> None:
        """From wherever it is: with people who answer and workers who work, it ends."""
        if not hasattr(self, "task"):
            return
        for _ in range(80):
            if self.ledger.row(self.task)["status"] in TERMINAL:
                break
            self._help()
        assert self.ledger.row(self.task)["status"] in TERMINAL, self.ledger.statuses(self.task)
        self.rows_are_consistent()
        assert not self.ledger.rows(
            "SELECT 1 FROM attempts a JOIN steps s ON s.id = a.step_id"
            " WHERE s.task_id = :task AND a.ended_at IS NULL",
            task=self.task,
        )
        ends = [e for e in self.ledger.events(self.task) if e["type"] == "status" and e["name"] in TERMINAL]
        assert (
            len(ends)
            == len({e["workflow_id"] for e in ends})
            == self.ledger.row(self.task)["workflow_number"]
        )

    def _help(self) -> None:
        self.command(intervene.resume)
        for number in range(len(self.steps())):
            self.lose_the_worker(number, uncounted=True)
            self.time_passes(number)
            self.answer(number)
            with self.ledger.engine.begin() as connection:
                sweep.repair_joins(connection)
            found = self.ledger.claim(self.one_of(number))
            if isinstance(found, Claimed) and self.ledger.succeed(found) is not None:
                self.effects[found.step.step_id] = found.fence


@pytest.fixture(scope="module")
def lives(postgres_server: PostgresServer) -> Iterator[None]:
    url = postgres_server.fresh(postgres_server.template("migrated", migrate))
    Life.ledger = opened(url)
    yield
    Life.ledger.engine.dispose()
    postgres_server.drop(url)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [pytest.mark.usefixtures("lives"), pytest.mark.timeout(300)]
