"""What the tests of the rows share: a migrated database, and short words for what shells do to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from orchestrator.commands import request, submit
from orchestrator.commands.submit import Policy
from orchestrator.core.bounds import CODES
from orchestrator.core.states import RULES, TERMINAL, Event, Status, StepView, task_status
from orchestrator.core.verdict import Ask
from orchestrator.db import claims, completion, connect, effects, transitions
from orchestrator.db.claims import Claimed, Refusal
from orchestrator.db.models import Base
from orchestrator.db.sql import Direct, StepRef, TaskRef
from orchestrator.db.transitions import Applied
from orchestrator.db.upgrade import upgrade

T = TypeVar("T")
TENANT = "default"
LEASE = timedelta(seconds=60)
POLICY = Policy(
    max_attempts=3,
    allow_local_repositories=True,
    agent_types=frozenset({"engine", "replay", "agentapi"}),
)


def migrate(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    upgrade(engine)
    engine.dispose()


def step(key: str, *needs: str) -> dict[str, Any]:
    return {"id": key, "description": f"Do {key}", "needs": list(needs)}


@dataclass(frozen=True)
class Ledger:
    """The rows of one installation."""

    url: str
    engine: Engine

    def do(self, work: Callable[[Connection], T]) -> T:
        """In a transaction of its own."""
        with self.engine.begin() as connection:
            return work(connection)

    def task(self, task_id: str = "t", /, *steps: dict[str, Any], **body: Any) -> dict[str, StepRef]:
        """Submits a task; its steps by key."""
        plan = {"steps": list(steps)} if steps else {}
        self.submit(request.parse({"description": "Something", **plan, **body}), task_id)
        return self.steps(task_id)

    def submit(self, wanted: request.TaskRequest, task_id: str) -> None:
        self.do(
            lambda connection: submit.submit(
                connection,
                wanted,
                policy=POLICY,
                tenant_id=TENANT,
                task_id=task_id,
                created_by="test",
                now=datetime.now(UTC),
            )
        )

    def steps(self, task_id: str = "t") -> dict[str, StepRef]:
        """Of the task's current workflow, by key."""
        found = self.rows(
            "SELECT s.key, s.workflow_id, s.id FROM steps s JOIN tasks t ON t.id = s.task_id"
            " JOIN workflows w ON w.id = s.workflow_id AND w.number = t.workflow_number"
            " WHERE t.id = :task ORDER BY s.number",
            task=task_id,
        )
        return {row["key"]: StepRef(TENANT, task_id, row["workflow_id"], row["id"]) for row in found}

    def claim(
        self,
        ref: StepRef,
        *,
        lease: timedelta = LEASE,
        agent: str = "agent@host/1",
        signature: Mapping[str, Any] | None = None,
        workflows_at_once: int = 0,
    ) -> Claimed | Refusal:
        def work(connection: Connection) -> Claimed | Refusal:
            claimed = claims.claim(
                connection,
                ref,
                lease=lease,
                agent_id=agent,
                signature=signature,
                workflows_at_once=workflows_at_once,
            )
            if claimed is not None:
                return claimed
            return claims.refusal(
                connection, ref, agent_id=agent, signature=signature, workflows_at_once=workflows_at_once
            )

        return self.do(work)

    def take(self, ref: StepRef, **how: Any) -> Claimed:
        found = self.claim(ref, **how)
        assert isinstance(found, Claimed), found
        return found

    def succeed(self, claimed: Claimed, *, carried: frozenset[str] = frozenset()) -> Applied | None:
        """As the step's shell does it: by one call if that is all, else in a transaction."""

        def work(connection: Connection | Direct) -> Applied | None:
            return completion.succeed(
                connection,
                claimed.step,
                claimed.fence,
                summary="done",
                result={"ok": True},
                carried=carried,
            )

        with connect.at_once(self.engine) as connection:
            applied = work(connection)
        return applied or self.do(work)

    def fail(self, claimed: Claimed) -> Applied | None:
        error = {"code": "no-luck", "message": "It did not work.", "recoverable": True}
        return self.do(lambda connection: transitions.fail(connection, claimed.step, claimed.fence, error))

    def ask(self, claimed: Claimed, call_id: str = "call_1") -> Applied | None:
        asked = Ask(call_id, "Which one?", ("left", "right"))
        return self.do(lambda connection: effects.ask(connection, claimed.step, claimed.fence, asked))

    def end_lease(self, ref: StepRef) -> None:
        """As if the worker had been silent for a whole lease."""
        self.run("UPDATE steps SET lease_until = clock_timestamp() WHERE id = :step", step=ref.step_id)

    def expire(self, ref: StepRef, *, uncounted: bool = False) -> Applied | None:
        self.end_lease(ref)
        fence = self.step(ref)["fence"]
        return self.do(lambda connection: transitions.expire(connection, ref, fence, uncounted=uncounted))

    def row(self, task_id: str = "t") -> dict[str, Any]:
        (found,) = self.rows("SELECT * FROM tasks WHERE id = :task", task=task_id)
        return found

    def step(self, ref: StepRef) -> dict[str, Any]:
        (found,) = self.rows("SELECT * FROM steps WHERE id = :step", step=ref.step_id)
        return found

    def statuses(self, task_id: str = "t") -> dict[str, str]:
        return {key: self.step(ref)["status"] for key, ref in self.steps(task_id).items()}

    def question(self, ref: StepRef) -> dict[str, Any]:
        (found,) = self.rows("SELECT * FROM questions WHERE step_id = :step", step=ref.step_id)
        return found

    def events(self, task_id: str = "t") -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM events WHERE task_id = :task ORDER BY number", task=task_id)

    def names(self, ref: StepRef) -> list[str]:
        """Of the transitions of one step."""
        found = self.rows(
            "SELECT name FROM events WHERE step_id = :step AND type = 'step' ORDER BY number",
            step=ref.step_id,
        )
        return [row["name"] for row in found]

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(sql), values).mappings()]

    def run(self, sql: str, **values: Any) -> int:
        """How many rows it changed."""
        with self.engine.begin() as connection:
            return connection.execute(text(sql), values).rowcount

    def clear(self) -> None:
        """Deletes all rows; the guards are against changes alone."""
        with self.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())

    def assert_consistent(self, task_id: str = "t") -> None:
        """What must hold of a task's rows between any two transactions."""
        task = self.row(task_id)
        self._assert_status_follows(task)
        self._assert_events_in_order(task)
        self._assert_starts_in_order(task_id)
        (count,) = self.rows(
            "SELECT count(*) AS open FROM questions WHERE task_id = :task AND answered_at IS NULL"
            " AND withdrawn_at IS NULL",
            task=task_id,
        )
        assert task["open_questions"] == count["open"]

    def _assert_status_follows(self, task: Mapping[str, Any]) -> None:
        found = [self.step(ref) for ref in self.steps(task["id"]).values()]
        views = [
            StepView(Status(row["status"]), row["fence"] > 0, row["ready_at"] is not None) for row in found
        ]
        late = any(row["error"] and row["error"]["code"] in CODES.values() for row in found)
        going_on = task["on_step_failure"] == "continue" and not late
        assert task["status"] == task_status(views, on_failure_continue=going_on)

    def _assert_events_in_order(self, task: Mapping[str, Any]) -> None:
        """Numbers have no gap; each step goes where the table leads; nothing follows a workflow's end."""
        events = self.events(task["id"])
        assert [event["number"] for event in events] == list(range(1, task["event_number"] + 1))
        at: dict[str, Status] = {}
        ended: set[str] = set()
        for event in events:
            assert event["workflow_id"] not in ended, event
            if event["type"] == "step":
                before = at.get(event["step_id"], Status.QUEUED)
                rule = RULES[Event(event["name"])]
                assert before in rule.sources, (before, event)
                assert event["data"]["to"] == rule.to
                at[event["step_id"]] = rule.to
            elif event["type"] == "status" and event["name"] in TERMINAL:
                ended.add(event["workflow_id"])
        for ref in self.steps(task["id"]).values():
            assert at.get(ref.step_id, Status.QUEUED) == self.step(ref)["status"], ref

    def _assert_starts_in_order(self, task_id: str) -> None:
        early = self.rows(
            "SELECT s.id FROM steps s JOIN step_needs n ON n.step_id = s.id JOIN steps r ON r.id = n.need_id"
            " WHERE s.task_id = :task AND s.fence > 0"
            " AND (r.finished_at IS NULL OR r.finished_at > s.started_at OR r.status <> 'completed')",
            task=task_id,
        )
        assert not early


def opened(url: str, pool_size: int = 8) -> Ledger:
    return Ledger(url, connect.create(url, application="tests", pool_size=pool_size))


def the_task(task_id: str = "t") -> TaskRef:
    return TaskRef(TENANT, task_id)
