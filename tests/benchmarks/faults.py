"""What is done to an installation, one fault at a time, chosen by a seeded random."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg2
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.bootstrap import Wiring
from orchestrator.db import publishing
from orchestrator.db.sql import StepRef
from orchestrator.local import processes
from orchestrator.tasks import sweep
from orchestrator.tasks.publish import send_step
from tests.benchmarks import crash_points
from tests.benchmarks.installation import Installation

_SOME_STEPS: Final = text(
    "SELECT tenant_id, task_id, workflow_id, id FROM steps WHERE fence > 0 OR ready_at IS NOT NULL"
    " ORDER BY claimed_at DESC NULLS FIRST LIMIT 40"
)


_BUSY: Final = text("SELECT pid FROM agents WHERE step_id IS NOT NULL")


@dataclass
class Later:
    """What must be done when its time has come: a stopped process goes on, a stopped beat comes back."""

    at: float
    do: Callable[[], None]


@dataclass
class Faults:
    """Injects; `tick` must be called often. Used by the thread that owns the installation."""

    here: Installation
    wiring: Wiring
    chance: random.Random
    workers: tuple[str, ...]
    lease: float
    only: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    _later: list[Later] = field(default_factory=list)
    _stopped: set[int] = field(default_factory=set)

    @property
    def kinds(self) -> dict[str, tuple[int, Callable[[], bool]]]:
        """Name → (weight, injector); an injector says whether it found something to hurt."""
        found = {
            "kill_child": (6, self.kill_child),
            "kill_main": (3, self.kill_main),
            "kill_group": (3, self.kill_group),
            "stop_child": (6, self.stop_child),
            "stop_group": (2, self.stop_group),
            "crash_before_commit": (4, lambda: self.order("before")),
            "crash_after_commit": (4, lambda: self.order("after")),
            "commit_reply_lost": (4, lambda: self.order("reply_lost")),
            "flushall": (3, self.flushall),
            "redis_lost": (1, self.redis_lost),
            "redis_clients_killed": (2, self.redis_clients_killed),
            "postgres_restart": (1, self.postgres_restart),
            "backends_terminated": (3, self.backends_terminated),
            "duplicates": (6, self.duplicates),
            "two_sweeps": (4, self.two_sweeps),
            "beat_stopped": (2, self.beat_stopped),
            "drain": (2, self.drain),
        }
        return {name: found[name] for name in self.only or found}

    def inject(self) -> str | None:
        names = list(self.kinds)
        name = self.chance.choices(names, [self.kinds[name][0] for name in names])[0]
        try:
            done = self.kinds[name][1]()
        except (SQLAlchemyError, psycopg2.Error, KombuError, RedisError, OSError):
            return None  # what should have been hurt is down already
        if not done:
            return None
        self.counts[name] += 1
        return name

    def tick(self) -> None:
        """Does what has become due, and starts again what has died."""
        now = time.monotonic()
        due = [later for later in self._later if later.at <= now]
        self._later = [later for later in self._later if later.at > now]
        for later in due:
            later.do()
        for name in (*self.workers, "system", "beat"):
            if self._has_ended(name) and not any(later.at > now for later in self._later_of(name)):
                self.here.renew(name)

    def stop(self) -> None:
        """All is repaired: no order is open, nobody is stopped, everybody runs."""
        self.here.folder.joinpath("order").unlink(missing_ok=True)
        for later in self._later:
            later.do()
        self._later.clear()
        self.tick()

    def _later_of(self, name: str) -> list[Later]:
        return [later for later in self._later if getattr(later.do, "about", None) == name]

    def _has_ended(self, name: str) -> bool:
        return self.here.supervisor._runs[name].process.poll() is not None

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._later.append(Later(time.monotonic() + seconds, do))

    def _worker(self) -> str:
        return self.chance.choice(self.workers)

    def _busy(self) -> int | None:
        """A child that carries a step just now, if there is one; else any."""
        with self.wiring.engine.connect() as connection:
            busy = {row.pid for row in connection.execute(_BUSY)}
        ours = [pid for name in self.workers for pid in self._children(name) if pid in busy]
        return self.chance.choice(ours) if ours else self._child()

    def _child(self) -> int | None:
        children = [one for name in (*self.workers, *self.workers, "system") for one in self._children(name)]
        return self.chance.choice(children) if children else None

    def _children(self, name: str) -> list[int]:
        return [one.pid for one in self.here.children(name) if one.pid not in self._stopped]

    # ---- processes

    def kill_child(self) -> bool:
        return _signalled(self._busy(), signal.SIGKILL)

    def kill_main(self) -> bool:
        """Its children live on for a moment, as they would without a supervisor."""
        name = self._worker()
        if self._has_ended(name):
            return False
        os.kill(self.here.pid(name), signal.SIGKILL)
        revive = _about(name, lambda: self.here.renew(name))
        self._after(self.chance.uniform(0.1, 2.5), revive)
        return True

    def kill_group(self) -> bool:
        name = self._worker()
        if self._has_ended(name):
            return False
        os.killpg(self.here.pid(name), signal.SIGKILL)
        return True

    def stop_child(self) -> bool:
        return self._stop(self._busy(), os.kill)

    def stop_group(self) -> bool:
        name = self._worker()
        return not self._has_ended(name) and self._stop(self.here.pid(name), os.killpg)

    def _stop(self, pid: int | None, kill: Callable[[int, int], None]) -> bool:
        if pid is None or pid in self._stopped:
            return False
        identity = processes.identify(pid)
        try:
            kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self._stopped.add(pid)

        def go_on() -> None:
            self._stopped.discard(pid)
            if identity is not None and processes.alive(identity):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGCONT)

        self._after(self.chance.uniform(0.5, 3) * self.lease, go_on)
        return True

    def order(self, what: str) -> bool:
        crash_points.lay_down(self.here.folder / "order", what)
        return True

    def drain(self) -> bool:
        """SIGTERM, with the time that it takes; then it starts again."""
        name = self._worker()
        if self._has_ended(name):
            return False
        os.kill(self.here.pid(name), signal.SIGTERM)
        return True

    def beat_stopped(self) -> bool:
        if self._has_ended("beat"):
            return False
        os.kill(self.here.pid("beat"), signal.SIGKILL)
        self._after(self.chance.uniform(1, 5), _about("beat", lambda: self.here.renew("beat")))
        return True

    # ---- servers

    def flushall(self) -> bool:
        with self.here.client() as client:
            client.flushall()
        return True

    def redis_lost(self) -> bool:
        self.here.lose_redis()
        return True

    def redis_clients_killed(self) -> bool:
        with self.here.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return True

    def postgres_restart(self) -> bool:
        self.here.restart_postgres_at_once()
        return True

    def backends_terminated(self) -> bool:
        share = self.chance.choice((0.2, 0.5, 1.0))
        with self.wiring.engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < :share"
                ),
                {"share": share},
            )
        return True

    # ---- messages and sweeps

    def duplicates(self) -> bool:
        with self.wiring.engine.connect() as connection:
            rows = list(connection.execute(_SOME_STEPS))
            chosen = self.chance.sample(rows, min(len(rows), 5))
            found = [
                one
                for row in chosen
                for one in publishing.queued(connection, [StepRef(*row)]) or _any_status(connection, row)
            ]
        for step in found:
            for _ in range(self.chance.randint(1, 3)):
                send_step(self.wiring, step)
        return bool(found)

    def two_sweeps(self) -> bool:
        """Nobody waits for them here: they may wait for a row that only this thread's next step lets go."""
        for _ in range(2):
            threading.Thread(target=_sweep, args=(self.wiring,), daemon=True).start()
        return True


_ANY: Final = text(
    "SELECT s.tenant_id, s.id, s.task_id, s.workflow_id, s.key, s.number, s.kind, s.priority, s.canvas,"
    " s.signature, 1 AS total FROM steps s WHERE s.id = :step"
)


def _any_status(connection: Any, row: Any) -> list[publishing.Publishable]:
    """A step that is running, parked or over: its message comes late."""
    found = connection.execute(_ANY, {"step": row.id}).mappings()
    return [publishing._publishable(one) for one in found]


def _sweep(wiring: Wiring) -> None:
    """Without the lock that lets one of two sweeps wait: even then they must do no harm."""
    with contextlib.suppress(SQLAlchemyError):
        sweep._sweep(wiring)


def _about(name: str, do: Callable[[], None]) -> Callable[[], None]:
    do.about = name  # type: ignore[attr-defined]
    return do


def _signalled(pid: int | None, sign: signal.Signals) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return False
    return True
