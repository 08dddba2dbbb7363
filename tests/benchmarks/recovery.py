"""How soon a step goes on after a kill -9 in the middle of it, and that no finished turn is asked for again.

The real engine on a scripted model, in real checkouts; the step's worker is killed after one of its turns was
committed, at any phase of its heartbeat. Timed from the kill to the COMMIT of the next claim.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.config import Settings
from orchestrator.queues.names import Lane
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.rounds import PATIENCE_SECONDS, await_ended, send, step
from tests.integration.repositories import git, repository

DEATHS: Final = 10
AT_DEFAULTS: Final = 4
VICTIMS: Final = ("child", "main", "group")
TURNS: Final = 6
TURN_SECONDS: Final = 0.2
WORKERS: Final = ("agent-1", "agent-2")
LEASE_SECONDS: Final = 2.0
TICK_SECONDS: Final = 0.5
QUICK: Final = {
    "lease": f"PT{LEASE_SECONDS}S",
    "sweep_every": f"PT{TICK_SECONDS}S",
    "publish_grace": "PT1S",
    "max_attempts": "8",
}
"""The tests' profile."""
_DEFAULTS: Final = Settings.model_fields
PROMISED: Final = {
    "test": LEASE_SECONDS + TICK_SECONDS,
    "default": (_DEFAULTS["lease"].default + _DEFAULTS["sweep_every"].default).total_seconds(),
}
"""Lease + tick of each profile, in seconds."""
_CARRIER: Final = text(
    "SELECT a.pid, a.name FROM steps s JOIN agents a ON a.tenant_id = s.tenant_id AND a.step_id = s.id"
    " WHERE s.task_id = :task AND s.status = 'running'"
)
_TURNS: Final = text(
    "SELECT t.number, t.fence FROM turns t JOIN steps s ON s.tenant_id = t.tenant_id AND s.id = t.step_id"
    " WHERE s.task_id = :task AND t.kind = 'turn' ORDER BY t.id"
)
_CLAIMS: Final = text(
    "SELECT fence, CAST(data ->> 'attempt' AS int) AS attempt, data ->> 'by' AS by,"
    " extract(epoch FROM pg_xact_commit_timestamp(xmin)) AS at"
    " FROM events WHERE task_id = :task AND type = 'step' AND name = 'claim' ORDER BY fence"
)
_RESULT: Final = text("SELECT status, branch_commit FROM steps WHERE task_id = :task")
_UP: Final = text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Death:
    """One step whose worker was killed once: what came of it."""

    victim: str
    seconds: float
    """From the kill to the COMMIT of the next claim."""
    finished: int
    """Turns that were committed before."""
    asked: tuple[int, ...]
    """Turns that the later claim asked the model for."""
    attempts: tuple[int, ...]
    """Of each claim."""
    complete: bool
    """The step ended completed, and its file has the line of each turn once."""

    @property
    def asked_again(self) -> int:
        """Finished turns that went to the model once more."""
        return sum(turn <= self.finished for turn in self.asked)

    @property
    def as_expected(self) -> bool:
        """One more attempt, which went on right after the last finished turn."""
        return self.complete and self.attempts == (1, 2) and self.asked[:1] == (self.finished + 1,)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Deaths in the tests' profile, of each kind, and of pool children with the default settings."""

    test: Mapping[str, Sequence[Death]]
    default: Sequence[Death]

    @property
    def all(self) -> list[Death]:
        return [*(one for deaths in self.test.values() for one in deaths), *self.default]


def measure(deaths: int = DEATHS, at_defaults: int = AT_DEFAULTS) -> Recovery:
    """`at_defaults` children of one worker are killed one after the other with the default lease of a
    minute."""
    if not at_defaults:
        with installed(**QUICK) as quick:
            return Recovery(_each_victim(quick, deaths), [])
    # Both stand from the start: nobody's lease is taken for over until Postgres has been up for some leases.
    with installed() as slow, installed(**QUICK) as quick:
        slow.tell_commit_times()
        test = _each_victim(quick, deaths)
        return Recovery(test, _at_defaults(slow, at_defaults))


def summary(deaths: Sequence[Death]) -> dict[str, float]:
    seconds = [one.seconds for one in deaths]
    return {"p50": round(median(seconds), 3), "max": round(max(seconds), 3), "n": len(seconds)}


# --- the tests' profile -------------------------------------------------------------------------------------


def _each_victim(here: Installation, deaths: int) -> dict[str, list[Death]]:
    here.tell_commit_times()
    source = _source(here)
    extra = _requests(here)
    here.run(
        *(here.worker(name, extra=extra) for name in WORKERS),
        here.worker("system", (Lane.SYSTEM,)),
        here.beat(),
    )
    wiring = here.wiring("bench")
    _await_counted(wiring, LEASE_SECONDS)
    chance = random.Random(len(VICTIMS) * deaths)
    found: dict[str, list[Death]] = {}
    for victim in VICTIMS:
        print(f"  {deaths} times: kill -9 of the {victim}", file=sys.stderr)
        found[victim] = []
        for number in range(deaths):
            task_id = f"{victim}-{number}"
            for name in WORKERS:
                here.supervisor.await_ready(name)
            _begin(wiring, task_id, source)
            _await_turns(wiring, task_id, chance.randint(1, TURNS - 3))
            time.sleep(chance.uniform(0, TURN_SECONDS))
            killed_at = _kill(here, wiring, task_id, victim)
            await_ended(wiring, task_id, 1)
            found[victim].append(_told(here, wiring, task_id, victim, killed_at))
    return found


def _kill(here: Installation, wiring: Wiring, task_id: str, victim: str) -> float:
    """When it was done. Of a worker that ended, the rest is cleared away and it starts again, at once."""
    child, worker = _until(lambda: _carrier(wiring, task_id), f"who carries {task_id}")
    killed_at = time.time()
    match victim:
        case "child":
            os.kill(child, signal.SIGKILL)
        case "main":
            os.kill(here.pid(worker), signal.SIGKILL)
        case _:
            os.killpg(here.pid(worker), signal.SIGKILL)
    if victim != "child":
        here.renew(worker)
    return killed_at


# --- the default profile ------------------------------------------------------------------------------------


def _at_defaults(here: Installation, deaths: int) -> list[Death]:
    """As many steps as are to be hurt run at once on one worker: each waits out a lease of its own."""
    source = _source(here)
    here.run(
        here.worker("agent", slots=deaths, extra=_requests(here)),
        here.worker("system", (Lane.SYSTEM,)),
        here.beat(),
    )
    wiring = here.wiring("bench")
    lease = _DEFAULTS["lease"].default.total_seconds()
    _await_counted(wiring, lease)
    print(f"  {deaths} times: kill -9 of the child, default settings", file=sys.stderr)
    chance = random.Random(deaths)
    killed: dict[str, float] = {}
    for number in range(deaths):
        task_id = f"default-{number}"
        _begin(wiring, task_id, source)
        _await_turns(wiring, task_id, 1)
        time.sleep(chance.uniform(0, TURN_SECONDS))
        killed[task_id] = _kill(here, wiring, task_id, "child")
        time.sleep(chance.uniform(1, 3))
    for task_id in killed:
        await_ended(wiring, task_id, 1)
    return [_told(here, wiring, task_id, "child", at) for task_id, at in killed.items()]


# --- one step -----------------------------------------------------------------------------------------------


def _requests(here: Installation) -> dict[str, str]:
    return {"BENCHMARK_REQUESTS": str(_ledger(here))}


def _ledger(here: Installation) -> Path:
    return here.folder / "requests.jsonl"


def _source(here: Installation) -> Path:
    return repository(here.folder / "source", {"README.md": "A small project.\n"})


def _begin(wiring: Wiring, task_id: str, source: Path) -> None:
    send(wiring, task_id, [step(task_id, turns=TURNS, seconds=TURN_SECONDS, files=True)], str(source))


def _carrier(wiring: Wiring, task_id: str) -> tuple[int, str] | None:
    with wiring.engine.connect() as connection:
        row = connection.execute(_CARRIER, {"task": task_id}).one_or_none()
    return None if row is None else (int(row.pid), str(row.name))


def _turns(wiring: Wiring, task_id: str) -> list[tuple[int, int]]:
    with wiring.engine.connect() as connection:
        return [(row.number, row.fence) for row in connection.execute(_TURNS, {"task": task_id})]


def _await_turns(wiring: Wiring, task_id: str, count: int) -> None:
    _until(lambda: len(_turns(wiring, task_id)) >= count, f"{count} turns of {task_id}")


def _await_counted(wiring: Wiring, lease: float) -> None:
    """A lease that ends soon after Postgres' start counts as no attempt: the outage may have been its end."""

    def is_past() -> bool:
        with wiring.engine.connect() as connection:
            return float(connection.execute(_UP).scalar_one()) > 1.5 * lease

    _until(is_past, "the time after Postgres' start")


def _told(here: Installation, wiring: Wiring, task_id: str, victim: str, killed_at: float) -> Death:
    with wiring.engine.connect() as connection:
        claims = list(connection.execute(_CLAIMS, {"task": task_id}))
        result = connection.execute(_RESULT, {"task": task_id}).one()
    requests = [json.loads(line) for line in _ledger(here).read_text().splitlines()]
    lines = _written(here, result.branch_commit, task_id)
    return Death(
        victim,
        float(claims[1].at) - killed_at if len(claims) > 1 else float("inf"),
        sum(fence == 1 for _, fence in _turns(wiring, task_id)),
        tuple(one["turn"] for one in requests if one["task"] == task_id and one["fence"] > 1),
        tuple(claim.attempt for claim in claims),
        result.status == "completed" and lines == [f"{task_id} {number}" for number in range(1, TURNS + 1)],
    )


def _written(here: Installation, commit: str | None, task_id: str) -> list[str]:
    if commit is None:
        return []
    (mirror,) = (here.data / "mirrors").glob("*.git")
    return git(mirror, "show", f"{commit}:work/{task_id}.txt").splitlines()


def _until(found: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)
    return answer


def as_json(found: Recovery) -> dict[str, Any]:
    measured = {victim: summary(deaths) for victim, deaths in found.test.items()}
    if found.default:
        measured["child_default_settings"] = summary(found.default)
    return {
        "recovery_s": measured,
        "recovery_promised_s": PROMISED,
        "turns_asked_again": sum(one.asked_again for one in found.all),
        "recoveries_otherwise_than_expected": sum(not one.as_expected for one in found.all),
    }
