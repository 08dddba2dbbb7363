"""Real processes, random plans, random faults; then nothing may be lost, done twice or left over.

    scripts/chaos --seed 7 --steps 2000 [--json] [--no-fence]

The seed decides plans and the order of faults; when exactly they strike is up to the machine. `--no-fence` is
the negative control: the workers run without the fence, and violations must be found. Exit 1: there are
violations.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.bootstrap import Wiring
from orchestrator.queues.names import Lane, QueueName
from orchestrator.tasks.registry import register
from tests.benchmarks import invariants
from tests.benchmarks.faults.choice import Faults
from tests.benchmarks.faults.machine import small_disk
from tests.benchmarks.faults.remotes import remote
from tests.benchmarks.faults.scene import Scene
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.invariants import Violation
from tests.benchmarks.people import People
from tests.benchmarks.relay import Way, ways
from tests.integration.repositories import repository

LEASE: Final = 2.0
CANCEL_GRACE: Final = 5.0
PROFILE: Final = {
    "lease": f"PT{LEASE}S",
    "sweep_every": "PT0.5S",
    "publish_grace": "PT1S",
    "cancel_grace": f"PT{CANCEL_GRACE}S",
    "slice": "PT4S",
    "ageing": "PT20S",
    "max_attempts": "8",
    "command_memory_bytes": str(128 * 1024**2),
}
STEP_QUEUES: Final = tuple(queue for queue in QueueName if queue is not QueueName.SYSTEM)
WORKERS: Final = ("agent-1", "agent-2")
PROCESSES: Final = (*WORKERS, "system", "beat")
SLOTS: Final = 3
QUIET_SECONDS: Final = 120.0
LONGEST_BACKOFF_SECONDS: Final = 30
FILES: Final = 0.15
LONG: Final = 0.02
LONG_IN_CONTROL: Final = 0.25
"""Of two who work at a step one must still be at it when the other wakes up."""
REDIS_SECONDS: Final = 3
"""After this long an answer of Redis isn't waited for any more: as the lease, a tenth of production's."""
PACE: Final = 2.0
"""Seconds between two faults, at most."""
_PROGRESS: Final = text(
    "SELECT count(*) FILTER (WHERE finished_at IS NOT NULL), count(*), (SELECT count(*) FROM tasks"
    " WHERE finished_at IS NULL) FROM steps"
)
_ENDS: Final = text(
    "SELECT CASE WHEN t.parent_id IS NULL THEN s.status ELSE 'subtask ' || s.status END, count(*)"
    " FROM steps s JOIN tasks t ON t.id = s.task_id GROUP BY 1 ORDER BY 1"
)
_REASONS: Final = text(
    "SELECT coalesce(error ->> 'code', '?')"
    " || CASE WHEN spec ->> 'dies' = 'true' THEN ' (deadly)' ELSE '' END, count(*)"
    " FROM steps WHERE status = 'failed' GROUP BY 1"
)
_BY: Final = text(
    "SELECT data ->> 'by', count(*) FROM events WHERE type = 'step' AND name = 'claim' GROUP BY 1 ORDER BY 1"
)


@dataclass(slots=True)
class Report:
    """What one run showed."""

    seed: int
    steps: int
    seconds: float
    quiet_after: float | None
    """Seconds from the last fault until nothing was left to do; None: it never came to that."""
    faults: dict[str, int]
    left_out: list[str]
    """Faults that could not be injected here, and why."""
    commands: dict[str, int]
    ends: dict[str, int]
    failures: dict[str, int]
    claims_by: dict[str, int]
    violations: list[Violation]


def run(seed: int, steps: int, *, fence: bool = True, keep_logs: Path | None = None) -> Report:
    """One run in an installation of its own."""
    began = time.monotonic()
    with (
        installed(synced=False, **PROFILE) as here,
        small_disk(here.data) as small,
        ways(here.ports, PROCESSES) as found,
    ):
        try:
            report = _run(here, seed, steps, found, small=small, fence=fence)
        finally:
            if keep_logs is not None:
                _copy_logs(here.folder / "logs", keep_logs)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _run(
    here: Installation,
    seed: int,
    steps: int,
    found: dict[str, dict[str, Way]],
    *,
    small: bool,
    fence: bool,
) -> Report:
    here.tell_commit_times()
    wiring = here.wiring("chaos")
    registered = register(wiring)
    source = repository(
        here.folder / "source", {"README.md": "A small project.\n", "shared.txt": "nothing yet\n"}
    )
    extra = {
        "BENCHMARK_ORDERS": str(here.folder / "order"),
        "BENCHMARK_REDIS_SECONDS": str(REDIS_SECONDS),
    }
    if not fence:
        extra["BENCHMARK_FENCE"] = "none"

    def environment(name: str) -> dict[str, str]:
        return extra | here.by_way_of({server: way.port for server, way in found[name].items()})

    here.run(
        *(here.worker(name, slots=SLOTS, extra=environment(name)) for name in WORKERS),
        here.worker("system", (Lane.SYSTEM,), extra=environment("system")),
        here.beat(extra=environment("beat")),
    )
    only = () if fence else ("stop_child",)
    scene = Scene(
        here, wiring, random.Random(f"{seed} faults"), WORKERS, LEASE, found, remote(here.folder), small
    )
    faults = Faults(scene, only)
    people = People(
        wiring,
        registered,
        seed,
        steps,
        str(source),
        str(scene.remote),
        FILES,
        LONG if fence else LONG_IN_CONTROL,
        lambda: scene.repairs.outage,
    )
    people.come()
    try:
        _suffer(faults, people, wiring, PACE if fence else PACE / 2)
        faults.stop()
        people.calm_down()
        stopped = time.monotonic()
        quiet = _await_quiet(faults, wiring, here)
        quiet_after = round(time.monotonic() - stopped, 1) if quiet else None
    finally:
        people.go_home()
    return _report(here, wiring, faults, people, seed, quiet_after)


def _suffer(faults: Faults, people: People, wiring: Wiring, pace: float) -> None:
    """Faults until nearly all steps have ended; the rest of them end in peace."""
    chance = random.Random(f"{people.seed} times")
    next_fault, next_line = time.monotonic() + 1, time.monotonic()
    while True:
        now = time.monotonic()
        if now >= next_fault:
            done = faults.inject()
            next_fault = time.monotonic() + (chance.uniform(0.3, pace) if done else 0.3)
        faults.tick()
        if now >= next_line:
            ended, written, live = _progress(wiring)
            hurt = sum(faults.counts.values())
            print(
                f"  {ended}/{people.steps} steps ended · {live} tasks live · {hurt} faults", file=sys.stderr
            )
            next_line = now + 5
            if people.all_submitted and ended >= written * 0.97:
                return
        time.sleep(0.02)


_HASTEN: Final = text(
    f"""
    UPDATE steps SET not_before = clock_timestamp() + interval '{LONGEST_BACKOFF_SECONDS} seconds'
    WHERE (tenant_id, id) IN (
        SELECT tenant_id, id FROM steps WHERE status = 'queued'
          AND not_before > clock_timestamp() + interval '{LONGEST_BACKOFF_SECONDS} seconds'
        FOR UPDATE SKIP LOCKED)
    """
)
"""A disk is full for a second or two here, and its class of errors waits for up to an hour."""


def _progress(wiring: Wiring) -> tuple[int, int, int]:
    try:
        with wiring.engine.begin() as connection:
            connection.execute(_HASTEN)
            ended, written, live = connection.execute(_PROGRESS).one()
            return int(ended), int(written), int(live)
    except SQLAlchemyError:
        return 0, 1, 1


def _await_quiet(faults: Faults, wiring: Wiring, here: Installation) -> bool:
    deadline = time.monotonic() + QUIET_SECONDS
    calm_since: float | None = None
    while time.monotonic() < deadline:
        faults.tick()
        calm_since = (calm_since or time.monotonic()) if _is_calm(wiring, here) else None
        if calm_since is not None and time.monotonic() - calm_since > LEASE:
            return True
        time.sleep(0.1)
    return False


_UNDELIVERED: Final = text(
    "SELECT count(*) FROM tasks WHERE entry_signature IS NOT NULL AND entry_delivered_at IS NULL"
)


def _is_calm(wiring: Wiring, here: Installation) -> bool:
    _, _, live = _progress(wiring)
    if live:
        return False
    workspaces = here.data / "workspaces"
    if workspaces.is_dir() and any(at.is_dir() for at in workspaces.iterdir()):
        return False
    with wiring.engine.connect() as connection:
        if connection.execute(_UNDELIVERED).scalar_one():
            return False
    with here.client() as client:
        return not sum(client.llen(queue.value) for queue in STEP_QUEUES) and not here.strays()


def _report(
    here: Installation, wiring: Wiring, faults: Faults, people: People, seed: int, quiet_after: float | None
) -> Report:
    grace = timedelta(seconds=CANCEL_GRACE + 2 * LEASE + 5)
    violations = invariants.check(here, wiring, people.accepted, grace)
    violations += invariants.check_pushes(wiring, faults.scene.remote, faults.scene.foreign)
    if quiet_after is None:
        violations.append(Violation("I12 the system is quiet", f"not within {QUIET_SECONDS:g} s"))
    violations += [Violation("the harness itself", each) for each in people.errors if "submit" not in each]
    with wiring.engine.connect() as connection:
        return Report(
            seed,
            people.submitted,
            0.0,
            quiet_after,
            dict(sorted(faults.counts.items())),
            faults.left_out,
            people.commanded,
            _counts(connection, _ENDS),
            _counts(connection, _REASONS),
            _counts(connection, _BY),
            violations,
        )


def _counts(connection: Connection, query: TextClause) -> dict[str, int]:
    return {str(name): int(number) for name, number in connection.execute(query)}


def _copy_logs(logs: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for log in logs.iterdir():
        (to / log.name).write_bytes(log.read_bytes())


def as_json(report: Report) -> dict[str, Any]:
    return {**asdict(report), "violations": [asdict(one) for one in report.violations]}


def as_table(report: Report) -> str:
    found = Counter(one.invariant for one in report.violations)
    names = [*invariants.SQL, *(name for name in found if name not in invariants.SQL)]
    hurt = sum(report.faults.values())
    lines = [
        f"seed {report.seed}: {report.steps} steps in {report.seconds} s under {hurt} faults",
        f"quiet {report.quiet_after} s after the last fault",
        "",
        "faults     " + ", ".join(f"{name} {count}" for name, count in report.faults.items()),
        "left out   " + ", ".join(report.left_out),
        "commands   " + ", ".join(f"{name} {count}" for name, count in report.commands.items()),
        "steps      " + ", ".join(f"{name} {count}" for name, count in report.ends.items()),
        "failures   " + ", ".join(f"{name} {count}" for name, count in report.failures.items()),
        "claims by  " + ", ".join(f"{name} {count}" for name, count in report.claims_by.items()),
        "",
        f"{'invariant':<34} violations",
        *(f"{name:<34} {found[name]:>10}" for name in names),
    ]
    if report.violations:
        lines += ["", *(f"{one.invariant}: {one.what}" for one in report.violations[:100])]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="default: drawn at random, and printed")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--no-fence", action="store_true", help="the negative control: violations must be found"
    )
    parser.add_argument(
        "--logs", type=Path, default=None, help="a folder that the processes' logs are copied to"
    )
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = run(seed, options.steps, fence=not options.no_fence, keep_logs=options.logs)
    print(json.dumps(as_json(report), indent=1) if options.json else as_table(report))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
