"""A whole installation of the tests: real Postgres and Redis, real workers as processes, a short lease."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from redis import Redis

from orchestrator import bootstrap
from orchestrator.bootstrap import Wiring
from orchestrator.config import Settings
from orchestrator.queues.names import Lane
from orchestrator.queues.settings import WORKER_ENVIRONMENT
from orchestrator.tasks.publish import perform
from orchestrator.tasks.registry import Registered, register
from orchestrator.tasks.sweep import Swept, run_sweep
from tests.integration import forking
from tests.integration.forking import Forked
from tests.integration.harness import FOLDER, Notes
from tests.integration.ledger import Ledger, opened

REPOSITORY = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 60
SWEEP_SECONDS = 0.2
"""Between two sweeps, each of which asks the database a dozen things."""
T = TypeVar("T")


def until(found: Callable[[], T], what: str = "it") -> T:
    """Asks again and again, less often the longer it takes, until the answer is true."""
    began = time.monotonic()
    while not (answer := found()):
        waited = time.monotonic() - began
        assert waited < PATIENCE_SECONDS, f"{what} never came about"
        time.sleep(min(max(0.02, waited / 10), 0.1))
    return answer


@dataclass(frozen=True)
class Stack:
    """Its settings are an environment, as a user's are."""

    database_url: str
    redis_url: str
    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ORCHESTRATOR_DATABASE_URL": self.database_url,
            "ORCHESTRATOR_BROKER_URL": self.redis_url,
            "ORCHESTRATOR_MESSAGE_SECRET": "the secret of the test installation",
            "ORCHESTRATOR_DATA_DIR": str(self.folder),
            "ORCHESTRATOR_LEASE": "PT2S",
            "ORCHESTRATOR_PUBLISH_GRACE": "PT0.4S",
            "ORCHESTRATOR_CANCEL_GRACE": "PT1S",
            FOLDER: str(self.folder),
            **self.more,
        }

    @cached_property
    def registered(self) -> Registered:
        return register(self.wiring)

    @cached_property
    def wiring(self) -> Wiring:
        named = {
            name.removeprefix("ORCHESTRATOR_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("ORCHESTRATOR_")
        }
        return bootstrap.load("tests", Settings(**named))  # type: ignore[arg-type]

    @cached_property
    def ledger(self) -> Ledger:
        return opened(self.database_url)

    @cached_property
    def redis(self) -> Any:
        return Redis.from_url(self.redis_url)

    @cached_property
    def notes(self) -> Notes:
        return Notes(self.folder)

    def call(self, request: Any, **options: Any) -> Any:
        """`execute_task.apply_async`."""
        return self.registered.execute_task.apply_async((request,), **options)

    def command(self, verb: Callable[..., Any], *subject: Any, **how: Any) -> Any:
        """A person's command, committed and published."""
        return perform(self.wiring, lambda connection: verb(connection, "default", *subject, by="me", **how))

    def sweep(self) -> Swept:
        return run_sweep(self.wiring)

    def healed(self, found: Callable[[], T], what: str = "it") -> T:
        """Sweeps until the answer is true."""

        swept_at = -math.inf

        def sweep_and_look() -> T:
            nonlocal swept_at
            if time.monotonic() - swept_at > SWEEP_SECONDS:
                self.sweep()
                swept_at = time.monotonic()
            return found()

        return until(sweep_and_look, what)

    def ends(self, task_id: str) -> str:
        """How the task ended; no sweep helps."""
        return str(until(lambda: self._end(task_id), f"the end of {task_id}"))

    def _end(self, task_id: str) -> str | None:
        row = self.ledger.row(task_id)
        return row["status"] if row["finished_at"] else None

    def began(self, name: str) -> dict[str, Any]:
        """An agent's note that it works on `<task>.<step>`."""
        return until(
            lambda: next((note for note in self.notes.read("began") if note["step"] == name), None), name
        )

    def close(self) -> None:
        self.ledger.engine.dispose()
        self.wiring.engine.dispose()
        self.redis.close()


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    process: Forked
    log: Path
    name: str

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def worker(
    stack: Stack,
    *,
    slots: int = 4,
    pool: str = "threads",
    app: str = "tests.integration.harness",
    queues: str = "",
) -> Iterator[WorkerProcess]:
    """A worker that takes messages, until the block is left (or it has ended before)."""
    name = f"agent-{uuid4().hex[:8]}@test"
    log = stack.folder / f"{name}.log"
    wanted = queues or ",".join(stack.wiring.topology.consumed(Lane))
    words = [
        *(app, "--hostname", name, "--queues", wanted),
        *("--pool", pool, "--concurrency", str(slots), "--loglevel", "INFO"),
    ]
    log.touch()
    process = forking.start(words, {**os.environ, **WORKER_ENVIRONMENT, **stack.environment}, log)
    found = WorkerProcess(process, log, name)
    try:
        until(lambda: " ready." in found.text() or process.poll() is not None, "the worker")
        assert process.poll() is None, found.text()
        yield found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            print(found.text())
