"""Whether a step costs more when the tables are full: the same work beside 1,000 and beside 100,000 steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.queues.names import Lane
from orchestrator.tasks.sweep import run_sweep
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.rounds import FORK_JOIN, ROUNDS, await_ended, send

FEW: Final = 1_000
MANY: Final = 100_000
WORKFLOWS: Final = 40
_TABLES: Final = (
    "tasks",
    "workflows",
    "workflow_history",
    "plan_revisions",
    "steps",
    "step_needs",
    "attempts",
    "events",
)
_COPY: Final = """
    INSERT INTO {table} SELECT copy.* FROM {table} t, generate_series(1, :copies) n,
    LATERAL (SELECT replace((to_jsonb(t) {less})::text, 'old', 'old-' || n)::jsonb {more} AS fields) changed,
    LATERAL jsonb_populate_record(t, changed.fields) copy
"""
_NEW_ID: Final = "|| jsonb_build_object('id', nextval(pg_get_serial_sequence('workflow_history', 'id')))"
_CLAIMS: Final = text(
    "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) AS at FROM events"
    " WHERE starts_with(task_id, :prefix) AND type = 'step' AND name = 'claim' ORDER BY 1"
)


@dataclass(frozen=True, slots=True)
class Growth:
    """Milliseconds per step, and of one sweep, each round's."""

    few: list[float]
    many: list[float]
    few_sweep: list[float]
    many_sweep: list[float]

    @property
    def ratio(self) -> float:
        return median(self.many) / median(self.few)


def measure(few: int = FEW, many: int = MANY, rounds: int = ROUNDS, workflows: int = WORKFLOWS) -> Growth:
    """One server, two databases; each has a worker with one slot."""
    found = Growth([], [], [], [])
    with installed() as here, ExitStack() as stack:
        here.tell_commit_times()
        small = stack.enter_context(_filled(here, "few", 1, few))
        large = stack.enter_context(_filled(here, "many", 2, many))
        for number in range(rounds):
            for wiring, costs, sweeps in (
                (small, found.few, found.few_sweep),
                (large, found.many, found.many_sweep),
            ):
                costs.append(_cost(wiring, f"new-{number}-", workflows))
                sweeps.append(_sweep_cost(wiring))
    return found


@contextmanager
def _filled(here: Installation, name: str, database: int, steps: int) -> Iterator[Wiring]:
    there = here.beside(name, database)
    sleeps = {"BENCHMARK_AGENT": "sleeper"}
    there.run(there.worker(f"agent-{name}", extra=sleeps), there.worker(f"system-{name}", (Lane.SYSTEM,)))
    wiring = there.wiring("bench")
    send(wiring, "old", FORK_JOIN)
    await_ended(wiring, "old", 1)
    copies = steps // len(FORK_JOIN) - 1
    with wiring.engine.begin() as connection:
        # Copies of rows that kept every promise need no foreign key looked up, a million times.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in _TABLES:
            own_id = table == "workflow_history"
            sql = _COPY.format(table=table, less="- 'id'" if own_id else "", more=_NEW_ID if own_id else "")
            connection.execute(text(sql), {"copies": copies})
    with wiring.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))
    _cost(wiring, "warm-", 5)
    yield wiring


def _cost(wiring: Wiring, prefix: str, workflows: int) -> float:
    """Median milliseconds between two claims of the one slot, which is never without work."""
    for number in range(workflows):
        send(wiring, f"{prefix}{number}", FORK_JOIN)
    await_ended(wiring, prefix, workflows)
    with wiring.engine.connect() as connection:
        claims = [float(row.at) for row in connection.execute(_CLAIMS, {"prefix": prefix})]
    return 1000 * median(later - earlier for earlier, later in pairwise(claims))


def _sweep_cost(wiring: Wiring) -> float:
    times = []
    for _ in range(5):
        began = time.monotonic()
        run_sweep(wiring)
        times.append(1000 * (time.monotonic() - began))
    return median(times)
