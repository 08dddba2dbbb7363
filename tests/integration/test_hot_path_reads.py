"""What the statements of every step read: as much beside many rows of the tenant as beside none.

No table is analyzed here, as on an installation's first day: what is prepared then keeps its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from orchestrator.commands import answer, intervene, request
from orchestrator.core import run_token
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.core.redaction import Redactor
from orchestrator.db import (
    claims,
    connect,
    effects,
    lineage,
    publishing,
    run_tokens,
    spending,
    transitions,
)
from orchestrator.db.breakers import Tried
from orchestrator.db.claims import Claimed
from orchestrator.db.events import EventDraft
from orchestrator.db.journal import Scope
from orchestrator.db.spending import Ended, NewCall, Tokens
from orchestrator.engine.ports import ToolResult
from orchestrator.tasks.journal import PostgresJournal
from tests.integration.gateway_server import MODEL, issue
from tests.integration.ledger import LEASE, TENANT, Ledger, opened, step
from tests.integration.test_journal import turn

LIVES, OTHERS = 8, 300
SPARE = 12
"""Rows: a table's first versions of a row are read along with the last until they are vacuumed."""

PLAN = request.parse(
    {"description": "Something", "steps": [*map(step, "abcdef"), step("join", *"abcdef")]},
)
READ = """
    SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) AS rows FROM pg_stat_user_tables
"""


UNANALYZED = """
    DO $$ DECLARE each regclass; BEGIN
        FOR each IN SELECT relid FROM pg_stat_user_tables LOOP
            EXECUTE 'ALTER TABLE ' || each || ' SET (autovacuum_enabled = off)';
        END LOOP;
    END $$
"""
"""Postgres may come round on its own while a test runs; a plan made just then reads a short table whole."""


@contextmanager
def connected(ledger: Ledger) -> Iterator[Ledger]:
    """Over one new connection, so that its plans and its counts are found again."""
    found = opened(ledger.url, pool_size=1)
    try:
        yield found
    finally:
        found.engine.dispose()


class Reads:
    """How many rows each part of a life read, by its name."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.by_part: dict[str, int] = {}

    def _so_far(self) -> int:
        self._ledger.rows("SELECT pg_stat_force_next_flush()")
        (found,) = self._ledger.rows(READ)
        return int(found["rows"])

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        before = self._so_far()
        yield
        self.by_part[part] = self._so_far() - before


def life(ledger: Ledger, name: str) -> dict[str, int]:
    """A task of seven steps, from its submission to its end, with all that an agent does on the way."""
    reads = Reads(ledger)
    refs = _submitted(ledger, name, reads)
    claimed = _claimed(ledger, refs["a"], reads)
    _turn(ledger, claimed, reads)
    _paid(ledger, claimed, reads)
    with reads.of("beat"):
        ledger.do(lambda c: claims.heartbeat(c, claimed.step, claimed.fence, LEASE, moved=True))
    with reads.of("observe"):
        told = [EventDraft("agent", "text", {"text": "hello"}, step_id=claimed.step.step_id)]
        chunk = effects.LogChunk("agent", "hello")
        ledger.do(lambda c: effects.observe(c, claimed.step, claimed.fence, claimed.attempt, told, [chunk]))
    with reads.of("ask"):
        ledger.ask(claimed)
    with reads.of("answer"):
        ledger.do(lambda c: answer.answer(c, TENANT, name, "left", by="test"))
    for key in (*"abcdef", "join"):
        again = _claimed(ledger, refs[key], reads)
        with reads.of(f"succeed {key}"):
            ledger.succeed(again)
    return reads.by_part


def _submitted(ledger: Ledger, name: str, reads: Reads) -> dict[str, Any]:
    with reads.of("submit"):
        ledger.submit(PLAN, name)
    return ledger.steps(name)


def _claimed(ledger: Ledger, ref: Any, reads: Reads) -> Claimed:
    with reads.of("claim"), connect.at_once(ledger.engine) as direct:
        found = claims.claim(direct, ref, lease=LEASE, agent_id="agent@host/1", signature={"a": 1})
    assert found is not None
    return found


def _turn(ledger: Ledger, claimed: Claimed, reads: Reads) -> None:
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, 0)
    journal = PostgresJournal(ledger.engine, scope, Redactor([]))
    parts: dict[str, Callable[[], object]] = {
        "hear": lambda: journal.hear(1),
        "spent elsewhere": journal.spent_elsewhere,
        "append": lambda: journal.append_turn(turn(1)),
        "begin call": lambda: journal.begin_call(1, "call_1", "read_file", {"path": "x"}),
        "finish call": lambda: journal.finish_call("call_1", ToolResult("read"), None),
    }
    for part, work in parts.items():
        with reads.of(part):
            work()
    ledger.run(
        "INSERT INTO messages (task_id, author, text) VALUES (:task, 'me', 'Go left.')",
        task=claimed.step.task_id,
    )
    with reads.of("hear a message"):
        assert [heard.text for heard in journal.hear(2)] == ["Go left."]
    with reads.of("load"):
        journal.load()


def _paid(ledger: Ledger, claimed: Claimed, reads: Reads) -> None:
    token = issue(ledger, claimed)
    name = claimed.step.task_id
    call = NewCall(f"c-{name}", run_token.digest(token), "g", "anthropic", MODEL, "messages", True, None, 9)
    ended = Ended(
        "done", 200, None, Tokens(5, 5), Decimal(1), Tried.SUCCEEDED, first_byte_after=timedelta(seconds=1)
    )
    with reads.of("find"):
        assert ledger.do(lambda c: run_tokens.find(c, call.sha256)) is not None
    with reads.of("reserve"):
        ledger.do(lambda c: spending.reserve(c, call, CircuitBreaker()))
    with reads.of("settle"):
        ledger.do(lambda c: spending.settle(c, TENANT, call.id, ended, CircuitBreaker()))


def trouble(ledger: Ledger, name: str) -> dict[str, int]:
    """A task that is paused, reclaimed, failed, tried again and cancelled, and what is published of it."""
    reads = Reads(ledger)
    refs = _submitted(ledger, name, reads)
    claimed = _claimed(ledger, refs["a"], reads)
    with reads.of("pause"):
        ledger.do(lambda c: intervene.pause(c, TENANT, name, by="me"))
    with reads.of("obey pause"):
        ledger.do(lambda c: transitions.obey_pause(c, claimed.step, claimed.fence))
    with reads.of("resume"):
        ledger.do(lambda c: intervene.resume(c, TENANT, name, by="me"))
    again = _claimed(ledger, refs["a"], reads)
    ledger.end_lease(refs["a"])
    with reads.of("expire"):
        ledger.do(lambda c: transitions.expire(c, again.step, again.fence, uncounted=False))
    for part, work in {
        "queued": lambda c: publishing.queued(c, [claimed.step]),
        "workflow": lambda c: publishing.workflow(c, claimed.step.task),
        "entry": lambda c: publishing.entry(c, claimed.step.task),
        "last agent": lambda c: publishing.last_agent(c, claimed.step.task),
        "look": lambda c: claims.look(c, claimed.step),
        "children": lambda c: lineage.live_children(c, TENANT, [name]),
        "forsaken": lambda c: lineage.forsaken(c, TENANT, [claimed.step.step_id]),
    }.items():
        with reads.of(part):
            ledger.do(work)
    last = _claimed(ledger, refs["b"], reads)
    with reads.of("fail"):
        ledger.fail(last)
    with reads.of("failed late"):
        ledger.do(lambda c: publishing.failed_late(c, claimed.step.task))
    with reads.of("retry"):
        ledger.do(lambda c: intervene.retry(c, TENANT, name, by="me"))
    with reads.of("cancel"):
        ledger.do(lambda c: intervene.cancel(c, TENANT, name, by="me"))
    with reads.of("cancelled"):
        ledger.do(lambda c: publishing.cancelled(c, claimed.step.task))
    return reads.by_part


@pytest.mark.parametrize("task", [life, trouble])
def test_a_step_reads_as_much_beside_many_as_beside_none(
    ledger: Ledger, task: Callable[[Ledger, str], dict[str, int]]
) -> None:
    ledger.do(lambda c: c.exec_driver_sql(UNANALYZED))
    with connected(ledger) as early, connected(ledger) as late:
        first = task(early, "t0")
        for number in range(1, LIVES):
            task(early, f"t{number}")
        for number in range(OTHERS):
            early.submit(PLAN, f"other{number}")
        found = {"planned beside none": task(early, "early"), "planned beside many": task(late, "late")}
    for plans, last in found.items():
        grown = {part: (rows, last[part]) for part, rows in first.items() if last[part] > rows + SPARE}
        assert not grown, f"{plans}: rows read by the first task and by the last of many"
    assert sum(first.values())
