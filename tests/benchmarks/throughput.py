"""Durable against bare: the same canvases, pool and settings, with a step that only returns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from celery.canvas import Signature
from redis import Redis
from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.core.flow import compile_plan
from orchestrator.core.plan import PlanStep, validate
from orchestrator.core.priority import Priority
from orchestrator.local import processes
from orchestrator.queues import canvas
from orchestrator.queues.canvas import Message
from orchestrator.queues.messages import Reference, step_label
from orchestrator.queues.names import Lane
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.rounds import FORK_JOIN, PATIENCE_SECONDS, ROUNDS, await_ended, send
from tests.benchmarks.worker_names import BARE

WORKFLOWS: Final = 400
SLOTS: Final = 4
_LAST: Final = text(
    "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM tasks WHERE starts_with(id, :prefix)"
)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Steps per second, one number for each round."""

    bare: list[float]
    durable: list[float]
    bare_cpu: dict[str, float] = field(default_factory=dict)
    """Milliseconds of CPU per step by what spent them, over all rounds; `bench` is this process, which
    submits."""
    durable_cpu: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return median(self.durable) / median(self.bare)


def measure(workflows: int = WORKFLOWS, rounds: int = ROUNDS) -> Throughput:
    """Interleaved, so that what else the machine does hurts both."""
    found = Throughput([], [])
    with installed() as here:
        here.tell_commit_times()
        wiring = here.wiring("bench")
        here.run(here.worker("agent", slots=SLOTS, extra={"BENCHMARK_AGENT": "sleeper"}))
        here.run(here.worker("system", (Lane.SYSTEM,)), here.beat())
        steps = workflows * len(FORK_JOIN)
        with here.client() as client:
            _bare(wiring, client, "warm", min(20, workflows))
            _durable(wiring, "warm", min(20, workflows))
            for number in range(rounds):

                def bare(name: str = f"bare-{number}") -> float:
                    return _bare(wiring, client, name, workflows)

                def durable(name: str = f"durable-{number}") -> float:
                    return _durable(wiring, name, workflows)

                found.bare.append(steps / _costing(here, found.bare_cpu, rounds * steps, bare))
                found.durable.append(steps / _costing(here, found.durable_cpu, rounds * steps, durable))
    return found


def _costing(here: Installation, spent: dict[str, float], steps: int, work: Callable[[], float]) -> float:
    before = _cpu_seconds(here)
    seconds = work()
    for name, after in _cpu_seconds(here).items():
        spent[name] = spent.get(name, 0) + (after - before[name]) * 1000 / steps
    return seconds


def _cpu_seconds(here: Installation) -> dict[str, float]:
    """What each service has used so far with all that it has started, and this process without them."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {"bench": time.process_time()}
    for name in here.services:
        stats = (Path(f"/proc/{one.pid}/stat").read_text() for one in processes.family([here.pid(name)]))
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        used[name] = sum(int(one[11]) + int(one[12]) for one in fields) / ticks
    return used


def _bare(wiring: Wiring, client: Redis, prefix: str, workflows: int) -> float:
    """Seconds from the first canvas sent to the last result stored."""
    plan = validate([PlanStep(one["id"], one["description"], tuple(one["needs"])) for one in FORK_JOIN])
    (which,) = compile_plan(plan).canvases
    began = time.monotonic()
    for number in range(workflows):
        ids = {key: f"{prefix}-{number}.{place}" for place, key in enumerate(plan.keys, start=1)}
        canvas.compiled(which, _signatures(wiring, f"{prefix}-{number}", ids), wiring.app).apply_async()
    last = len(plan.keys)
    results = [f"celery-task-meta-{prefix}-{number}.{last}" for number in range(workflows)]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while client.exists(*results) < workflows:
        if time.monotonic() > deadline:
            raise TimeoutError(prefix)
        time.sleep(0.02)
    return time.monotonic() - began


def _signatures(wiring: Wiring, task_id: str, ids: Mapping[str, str]) -> Any:
    places = {key: place for place, key in enumerate(ids, start=1)}

    def signature_of(key: str) -> Signature[Any]:
        message = Message(
            ids[key],
            Reference(BARE, wiring.tenant_id, task_id, f"workflow_{task_id}_1", ids[key]),
            wiring.topology.destination(Priority.MEDIUM),
            step_label(task_id, "agent", places[key], len(ids)),
        )
        return canvas.signature(wiring.app, message, wiring.secret)

    return signature_of


def _durable(wiring: Wiring, prefix: str, workflows: int) -> float:
    """Seconds from the first submission to the last COMMIT, by Postgres' own clock."""
    began = time.time()
    for number in range(workflows):
        send(wiring, f"{prefix}-{number}", FORK_JOIN)
    await_ended(wiring, f"{prefix}-", workflows)
    with wiring.engine.connect() as connection:
        last = connection.execute(_LAST, {"prefix": f"{prefix}-"}).scalar_one()
    return float(last) - began
