"""A thousand tasks that wait for a person, on one worker with one slot: what they cost everybody else.

They are calls of `execute_task`, some of them members of a user's own chord. All ask and park; other tasks
run to their end beside them; every worker is restarted; then all are answered. Default settings.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final, TypeVar

from celery import chord
from celery.result import AsyncResult
from sqlalchemy import Row, TextClause, text

from orchestrator.bootstrap import Wiring
from orchestrator.commands import answer
from orchestrator.local.service import Service
from orchestrator.queues.names import Lane
from orchestrator.tasks.publish import perform
from orchestrator.tasks.registry import register
from orchestrator.tasks.sweep import run_sweep
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.latency import summary
from tests.benchmarks.rounds import PATIENCE_SECONDS, await_ended, body, send, step
from tests.integration.repositories import repository

TASKS: Final = 1_000
OTHERS: Final = 100
MEMBERS: Final = 50
ALONE: Final = 100
USERS_APP: Final = "tests.integration.users_app"
USERS_QUEUE: Final = "theirs"
CHORD_BODY: Final = f"{USERS_APP}.gathered"
_SWEEPS: Final = 5
_RECEIVED: Final = re.compile(r"Task \S+\[([^\]]+)\] received")
_PARKED: Final = text("SELECT count(*) FROM steps WHERE status = 'pending_input'")
_PARKED_AT: Final = text(
    "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM events"
    " WHERE task_id = :task AND type = 'step' AND name = 'ask'"
)
_IDLE_AT: Final = text(
    "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM agents"
    " WHERE name = 'agent' AND status = 'idle' AND step_id IS NULL"
)
_BUSY: Final = text(
    "SELECT (SELECT count(*) FROM agents WHERE step_id IS NOT NULL OR status = 'busy')"
    " + (SELECT count(*) FROM steps WHERE lease_until IS NOT NULL)"
)
_RESUMED_AT: Final = text(
    "SELECT task_id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) AS at FROM events"
    " WHERE type = 'step' AND name = 'claim' AND fence = 2 AND task_id = ANY(:tasks)"
)
_STEPS: Final = text("SELECT id FROM steps WHERE starts_with(task_id, 'parked-')")
_SPAN: Final = text(
    "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM tasks WHERE starts_with(id, :prefix)"
)
_COUNTS: Final = text(
    """
    SELECT count(*) FILTER (WHERE t.status = 'completed') AS completed,
        count(*) FILTER (WHERE t.entry_delivered_at IS NOT NULL) AS delivered,
        count(*) FILTER (WHERE s.attempt = 1 AND s.fence = 2) AS resumed_once,
        count(*) FILTER (WHERE s.published_by = 'sweep') + sum(t.entry_publications) AS swept,
        count(*) FILTER (WHERE s.signature #>> '{options,task_id}' = s.id) AS same_id,
        (SELECT count(*) FROM questions WHERE answered_at IS NOT NULL AND consumed_at IS NOT NULL) AS answers
    FROM tasks t JOIN steps s ON s.tenant_id = t.tenant_id AND s.task_id = t.id
    WHERE starts_with(t.id, 'parked-')
    """
)
T = TypeVar("T")


@dataclass(slots=True)
class Parked:
    """Seconds, unless they say otherwise; what was counted is beside the number of tasks in `wrong`."""

    tasks: int
    park: float = 0.0
    """From the first call until all wait."""
    slot_free: list[float] = field(default_factory=list)
    """From the COMMIT of a park to the COMMIT that frees the slot."""
    others_before: float = 0.0
    others_beside: float = 0.0
    """The same other tasks, before anything was parked and beside all that are."""
    sweep_before: float = 0.0
    sweep_beside: float = 0.0
    answered_alone: list[float] = field(default_factory=list)
    """From the answer to the COMMIT of the claim, with an idle slot."""
    answered_at_once: list[float] = field(default_factory=list)
    """The same for all the others, whose answers came as fast as they could."""
    finish: float = 0.0
    """From the first of those answers until the last task had ended."""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> dict[str, int]:
        """What was counted and is not as it should be."""
        wanted = {
            "busy": 0,
            "swept": 0,
            "body_runs": 1,
            "in_order": 1,
            **dict.fromkeys(
                (
                    "parked",
                    "shown",
                    "completed",
                    "delivered",
                    "resumed_once",
                    "same_id",
                    "received",
                    "answers",
                ),
                self.tasks,
            ),
        }
        return {name: count for name, count in self.counts.items() if count != wanted[name]}


def measure(tasks: int = TASKS, others: int = OTHERS, members: int = MEMBERS, alone: int = ALONE) -> Parked:
    """`alone` tasks are sent and answered one by one, with an idle slot each time; `members` of the others
    work in a real checkout and are the header of a user's chord."""
    found = Parked(tasks)
    names = [f"parked-{number}" for number in range(tasks)]
    with installed() as here:
        here.tell_commit_times()
        system = here.worker("system", (Lane.SYSTEM,), by_celery=True)
        workers = [here.worker("agent"), system, _users_worker(here)]
        here.run(*workers, here.beat())
        scene = _Scene(here, replace(here.wiring("bench"), waits=True), found)
        found.others_before = scene.others("before", others)
        found.sweep_before = scene.sweep()
        gathered = scene.park(names, alone, members)
        found.others_beside = scene.others("beside", others)
        found.sweep_beside = scene.sweep()
        log = here.supervisor.log("agent")
        before = log.stat().st_size
        here.leave(*(worker.name for worker in workers))
        here.run(*workers)
        scene.answer(names, alone)
        scene.check(names, members, gathered, log.read_text(errors="replace")[before:])
    return found


def _users_worker(here: Installation) -> Service:
    words = ("--queues", USERS_QUEUE, "--concurrency", "1", "--pool", "threads", "--loglevel", "INFO")
    argv = (sys.executable, "-m", "celery", "-A", USERS_APP, "worker", *words, "--hostname", "theirs@%h")
    return replace(here.worker("theirs"), argv=(*argv, "--without-gossip", "--without-mingle"))


class _Scene:
    """One installation, and what people do in it."""

    def __init__(self, here: Installation, wiring: Wiring, found: Parked) -> None:
        self._here = here
        self._wiring = wiring
        self._execute_task = register(wiring).execute_task
        self._found = found
        self._source = str(repository(here.folder / "source", {"README.md": "A small project.\n"}))

    # ---- beside them

    def others(self, prefix: str, count: int) -> float:
        """Seconds from the first submission to the last COMMIT."""
        print(f"  {count} others, {prefix}", file=sys.stderr)
        began = time.time()
        for number in range(count):
            send(self._wiring, f"{prefix}-{number}", [step("only")])
        await_ended(self._wiring, f"{prefix}-", count)
        return self._number(_SPAN, prefix=f"{prefix}-") - began

    def sweep(self) -> float:
        times = []
        for _ in range(_SWEEPS):
            began = time.monotonic()
            run_sweep(self._wiring)
            times.append(time.monotonic() - began)
        return median(times)

    # ---- asking

    def park(self, names: Sequence[str], alone: int, members: int) -> AsyncResult[Any]:
        """All of them; the result of the chord of the last ones."""
        print(f"  {len(names)} tasks that ask", file=sys.stderr)
        began = time.monotonic()
        for name in names[:alone]:
            self._call(name)
            parked_at = _until(lambda name=name: self._find(_PARKED_AT, task=name), name)  # type: ignore[misc]
            idle_at = _until(lambda: self._find(_IDLE_AT), "the idle slot")
            self._found.slot_free.append(float(idle_at[0]) - float(parked_at[0]))
        cut = len(names) - members
        for name in names[alone:cut]:
            self._call(name)
        asks = body([step("only", turns=1, asks=True, files=True)], self._source)
        header = [self._execute_task.s(asks).set(task_id=name) for name in names[cut:]]
        last = self._wiring.app.signature(CHORD_BODY, queue=USERS_QUEUE)
        gathered = chord(header, last, app=self._wiring.app).apply_async()
        _until(lambda: self._number(_PARKED) == len(names), "that all wait")
        self._found.park = time.monotonic() - began
        _until(lambda: self._number(_BUSY) == 0, "the idle slot")
        self._found.counts["parked"] = int(self._number(_PARKED))
        self._found.counts["busy"] = int(self._number(_BUSY))
        self._found.counts["shown"] = sum(
            self._execute_task.AsyncResult(name).status == "pending_input" for name in names
        )
        return gathered

    def _call(self, name: str) -> None:
        self._execute_task.apply_async((body([step("only", turns=0, asks=True)]),), task_id=name)

    # ---- answering

    def answer(self, names: Sequence[str], alone: int) -> None:
        print("  the answers", file=sys.stderr)
        for name in names[:alone]:
            answered_at = self._answer(name)
            claim = _until(lambda name=name: self._find(_RESUMED_AT, tasks=[name]), name)  # type: ignore[misc]
            self._found.answered_alone.append(float(claim.at) - answered_at)
            _until(lambda: self._number(_BUSY) == 0, "the idle slot")
        began = time.time()
        answered = {name: self._answer(name) for name in names[alone:]}
        await_ended(self._wiring, "parked-", len(names))
        self._found.finish = self._number(_SPAN, prefix="parked-") - began
        with self._wiring.engine.connect() as connection:
            claims = connection.execute(_RESUMED_AT, {"tasks": list(answered)})
            self._found.answered_at_once += [float(row.at) - answered[row.task_id] for row in claims]

    def _answer(self, name: str) -> float:
        """When the command returned."""
        perform(
            self._wiring,
            lambda connection: answer.answer(
                connection, self._wiring.tenant_id, name, f"Go on with {name}.", by="bench"
            ),
        )
        return time.time()

    # ---- what came of them

    def check(self, names: Sequence[str], members: int, gathered: AsyncResult[Any], log: str) -> None:
        """`log` is the worker's since it was restarted."""
        print("  what came of them", file=sys.stderr)
        in_order = gathered.get(timeout=PATIENCE_SECONDS) == list(names[len(names) - members :])
        for name in names:
            result = self._execute_task.AsyncResult(name).get(timeout=PATIENCE_SECONDS)
            if result["task_id"] != name:
                raise AssertionError(f"{name} got the result of {result['task_id']}")
        received = set(_RECEIVED.findall(log))
        with self._wiring.engine.connect() as connection:
            steps = {row.id for row in connection.execute(_STEPS)}
            rows = connection.execute(_COUNTS).one()._asdict()
        with self._here.client() as client:
            runs = int(client.get("gathered") or 0)
        self._found.counts.update(
            {**rows, "received": len(steps & received), "body_runs": runs, "in_order": int(in_order)}
        )

    # ---- reading

    def _find(self, query: TextClause, **values: Any) -> Row[Any] | None:
        with self._wiring.engine.connect() as connection:
            return connection.execute(query, values).one_or_none()

    def _number(self, query: TextClause, **values: Any) -> float:
        with self._wiring.engine.connect() as connection:
            return float(connection.execute(query, values).scalar_one())


def _until(found: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.002)
    return answer


def as_json(found: Parked) -> dict[str, Any]:
    def ms(seconds: Sequence[float]) -> dict[str, float]:
        return summary([1000 * one for one in seconds])

    return {
        "parked": {
            "tasks": found.tasks,
            "park_s": round(found.park, 2),
            "slot_free_ms": ms(found.slot_free),
            "others_s": {"before": round(found.others_before, 3), "beside": round(found.others_beside, 3)},
            "sweep_ms": {
                "before": round(1000 * found.sweep_before, 1),
                "beside": round(1000 * found.sweep_beside, 1),
            },
            "answer_to_running_ms": ms(found.answered_alone),
            "answer_in_a_rush_to_running_ms": ms(found.answered_at_once),
            "finish_s": round(found.finish, 2),
            "counts": found.counts,
            "wrong": found.wrong,
        }
    }
