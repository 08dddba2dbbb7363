"""What the queue tests share: a broker, notes in Redis, and a real worker process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery
from redis import Redis

from orchestrator.core.flow import Canvas, compile_plan
from orchestrator.core.plan import Plan
from orchestrator.core.priority import Priority
from orchestrator.queues.canvas import Message, compiled, signature
from orchestrator.queues.messages import Reference, step_label
from orchestrator.queues.names import Lane, TaskName
from orchestrator.queues.settings import WORKER_ENVIRONMENT
from orchestrator.queues.topology import Topology, topology
from tests.integration.step_worker import LOG, PATIENCE_SECONDS, SECRET, make

STOP_SECONDS = 10
REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Stage:
    broker_url: str
    result_url: str
    app: Celery
    notes: Any  # redis-py types every answer as perhaps awaitable

    @property
    def topology(self) -> Topology:
        return topology(self.broker_url)

    def message(
        self, step: str, priority: Priority = Priority.MEDIUM, number: int = 1, total: int = 1
    ) -> Message:
        return Message(
            celery_id=step,
            reference=Reference(TaskName.RUN_STEP, "default", "task_1", "workflow_1", step),
            destination=self.topology.destination(priority),
            label=step_label("task_1", "agent", number, total),
        )

    def send(self, step: str, priority: Priority) -> None:
        signature(self.app, self.message(step, priority), SECRET).apply_async()

    def send_canvas(self, plan: Plan, canvas: Canvas) -> None:
        number = {key: place for place, key in enumerate(plan.keys, 1)}
        compiled(
            canvas,
            lambda key: signature(
                self.app, self.message(key, number=number[key], total=len(plan.keys)), SECRET
            ),
            self.app,
        ).apply_async()

    def run(self, plan: Plan) -> list[dict[str, Any]]:
        """Sends every canvas when its needs are completed, as the shells do; returns the log."""
        waiting = list(compile_plan(plan).canvases)
        done: set[str] = set()
        while True:
            for canvas in [canvas for canvas in waiting if canvas.needs <= done]:
                waiting.remove(canvas)
                self.send_canvas(plan, canvas)
            if len(done) == len(plan.keys):
                return self.log()
            done = set(self.ended(len(done) + 1))

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.notes.lrange(LOG, 0, -1)]

    def steps(self, event: str) -> list[str]:
        return [entry["step"] for entry in self.log() if entry["event"] == event]

    def started(self, count: int) -> list[str]:
        return self._at_least("started", count)

    def ended(self, count: int) -> list[str]:
        return self._at_least("ended", count)

    def _at_least(self, event: str, count: int) -> list[str]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.steps(event)) < count:
            assert time.monotonic() < deadline, f"{event} only {found}, not {count}"
            time.sleep(0.02)
        return found

    def forget(self) -> None:
        """Clears all notes; what Celery keeps stays."""
        for pattern in (LOG, "hold:*", "go:*", "park:*", "parked:*"):
            for key in self.notes.scan_iter(pattern):
                self.notes.delete(key)

    def hold(self, *steps: str) -> None:
        for step in steps:
            self.notes.set(f"hold:{step}", 1)

    def let_go(self, *steps: str) -> None:
        for step in steps:
            self.notes.rpush(f"go:{step}", 1)

    def parked(self, step: str) -> Mapping[str, Any]:
        found = self.notes.blpop([f"parked:{step}"], PATIENCE_SECONDS)
        assert found, f"{step} was never parked"
        stored: Mapping[str, Any] = json.loads(found[1])
        return stored


@contextmanager
def staged(broker_url: str, result_url: str) -> Iterator[Stage]:
    app = make(broker_url, result_url)
    notes = Redis.from_url(result_url)
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            bound = queue(connection.default_channel)
            bound.declare()
            bound.purge()
    try:
        yield Stage(broker_url, result_url, app, notes)
    finally:
        app.backend.client.connection_pool.disconnect()
        app.close()
        notes.close()


@contextmanager
def worker(
    stage: Stage, folder: Path, *, slots: int = 8, lanes: Sequence[Lane] = tuple(Lane)
) -> Iterator[None]:
    """A worker process with that many threads, ready to take messages."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "tests.integration.celery_worker", "tests.integration.step_worker"]
    options = ["--pool", "threads", "--concurrency", str(slots), "--loglevel", "INFO"]
    queues = ["--queues", ",".join(stage.topology.consumed(lanes)), "--hostname", f"{uuid4().hex}@test"]
    environment = {
        **os.environ,
        **WORKER_ENVIRONMENT,
        "STEP_WORKER_BROKER": stage.broker_url,
        "STEP_WORKER_RESULTS": stage.result_url,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options, *queues], env=environment, cwd=REPOSITORY, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b" ready." not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Celery's soft shutdown sleeps in its signal handler and was once seen never to end.
            process.kill()
            process.wait(PATIENCE_SECONDS)
        print(log.read_text())
