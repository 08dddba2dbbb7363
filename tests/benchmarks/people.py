"""Everybody who uses an installation while it suffers: submits, answers (twice), pauses, resumes, cancels."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.bootstrap import Wiring
from orchestrator.commands import answer, intervene, request, submit
from orchestrator.core.errors import OrchestratorError
from orchestrator.tasks.publish import Publishes, perform
from orchestrator.tasks.registry import Registered

DELEGATES: Final = 0.08
MOST_LIVE: Final = 40
_PRIORITIES: Final = ("critical", "high", "medium", "medium", "low")
T = TypeVar("T", bound=Publishes)

_LIVE = text("SELECT id, paused_at FROM tasks WHERE finished_at IS NULL AND cancel_requested_at IS NULL")
_OPEN = text("SELECT id, step_id FROM questions WHERE answered_at IS NULL AND withdrawn_at IS NULL")
_ESCALATED = text(
    "SELECT DISTINCT task_id FROM steps WHERE status = 'pending_input' AND waiting_on = 'escalation'"
)


@dataclass
class People:
    """Threads around one installation; `repository` is what tasks with real files work in."""

    wiring: Wiring
    registered: Registered
    seed: int
    steps: int
    repository: str
    remote: str
    """Where half of those tasks work instead, and push to."""
    files: float
    """The share of tasks with real checkouts."""
    long: float = 0.02
    """The share of steps that take several leases."""
    outage: Callable[[], bool] = lambda: False
    """Whether something is out of order just now."""
    submitted: int = 0
    accepted: dict[str, list[str]] = field(default_factory=dict)
    """question → the answers that were taken; more than one is a violation."""
    calls: list[str] = field(default_factory=list)
    """Tasks that were submitted by `.delay()`."""
    commanded: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _calm: threading.Event = field(default_factory=threading.Event)
    _home: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def come(self) -> None:
        for work in (self._submit_all, self._answer_all, self._command):
            thread = threading.Thread(target=self._safely, args=(work,), name=work.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def all_submitted(self) -> bool:
        return not self._threads[0].is_alive()

    def calm_down(self) -> None:
        """No more commands; what is paused goes on; questions are still answered."""
        self._calm.set()

    def go_home(self) -> None:
        self._calm.set()
        self._home.set()
        for thread in self._threads:
            thread.join(60)

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.errors.append(f"{work.__name__}: {type(error).__name__}: {error}")
            raise

    # ---- what they do

    def _submit_all(self) -> None:
        chance = random.Random(f"{self.seed} submits")
        number = 0
        while self.submitted < self.steps:
            if self._live_count() >= MOST_LIVE:
                time.sleep(0.1)
                continue
            number += 1
            task_id = f"chaos-{self.seed}-{number}"
            body = self._body(chance, self.steps - self.submitted)
            if chance.random() < 0.15:
                self.calls.append(task_id)
                self._patiently(lambda task_id=task_id, body=body: self._call(task_id, body))  # type: ignore[misc]
            else:
                wanted = request.parse(body)
                self._patiently(lambda task_id=task_id, wanted=wanted: self._submit(task_id, wanted))  # type: ignore[misc]
            self.submitted += len(body["steps"]) + body.get("repository", {}).get("push", False)

    def _call(self, task_id: str, body: dict[str, Any]) -> None:
        self.registered.execute_task.apply_async(args=(body,), task_id=task_id)

    def _submit(self, task_id: str, wanted: request.TaskRequest) -> None:
        wiring = self.wiring
        perform(
            wiring,
            lambda connection: submit.submit(
                connection,
                wanted,
                policy=wiring.policy,
                tenant_id=wiring.tenant_id,
                task_id=task_id,
                created_by="chaos",
                now=wiring.clock(),
            ),
        )

    def _body(self, chance: random.Random, most: int) -> dict[str, Any]:
        files = chance.random() < self.files
        push = files and most > 1 and chance.random() < 0.5
        steps = plan(chance, min(most - push, 9 - push), files=files, long=self.long)
        repository = {"path": self.remote, "push": True} if push else {"path": self.repository}
        return {
            "description": "Some work",
            "priority": chance.choice(_PRIORITIES),
            "on_step_failure": chance.choice(("stop", "stop", "continue")),
            "steps": steps,
            **({"repository": repository} if files else {}),
        }

    def _live_count(self) -> int:
        return len(self._read(_LIVE))

    def _answer_all(self) -> None:
        chance = random.Random(f"{self.seed} answers")
        asked_at: dict[str, float] = {}
        with ThreadPoolExecutor(2) as rivals:
            while not self._home.is_set():
                for row in self._read(_OPEN):
                    due = asked_at.setdefault(
                        row.id, time.monotonic() + chance.choice((0.0, 0.0, 0.3, 1.0, 3.0))
                    )
                    if self._calm.is_set() or time.monotonic() >= due:
                        list(rivals.map(lambda who, row=row: self._answer(row.id, who), ("ann", "bob")))
                for row in self._read(_ESCALATED) if self._calm.is_set() else ():
                    self._do("cancel", row.task_id, chance)
                time.sleep(0.05)

    def _answer(self, question: str, who: str) -> None:
        given, outage = f"{who} says: go on", self.outage()
        wiring = self.wiring
        try:
            perform(
                wiring,
                lambda connection: answer.answer(connection, wiring.tenant_id, question, given, by=who),
            )
        except (OrchestratorError, SQLAlchemyError):
            return
        with self._lock:
            self.accepted.setdefault(question, []).append(given)
            self._count("answer" if not outage else "answer in an outage")

    def _command(self) -> None:
        chance = random.Random(f"{self.seed} commands")
        paused: dict[str, float] = {}
        while not self._home.is_set():
            time.sleep(0.2)
            now = time.monotonic()
            for row in self._read(_LIVE):
                if row.paused_at is not None:
                    until = paused.setdefault(row.id, now + chance.uniform(0, 3))
                    if self._calm.is_set() or now >= until:
                        self._do("resume", row.id, chance)
                        paused.pop(row.id, None)
                elif not self._calm.is_set() and (draw := chance.random()) < 0.005:
                    self._do("cancel" if draw < 0.001 else "pause", row.id, chance)

    def _do(self, command: str, task_id: str, chance: random.Random) -> None:
        del chance
        wiring = self.wiring
        apply = {"cancel": intervene.cancel, "pause": intervene.pause, "resume": intervene.resume}[command]
        try:
            perform(
                wiring,
                lambda connection: apply(connection, wiring.tenant_id, task_id, by="chaos", reason="chaos"),
            )
        except (OrchestratorError, SQLAlchemyError):
            return
        self._count(command)

    def _count(self, what: str) -> None:
        self.commanded[what] = self.commanded.get(what, 0) + 1

    def _read(self, sql: Any) -> list[Any]:
        try:
            with self.wiring.engine.connect() as connection:
                return list(connection.execute(sql))
        except SQLAlchemyError:
            return []

    def _patiently(self, work: Callable[[], object]) -> None:
        """As a client that tries again with the same id until it is told that the task is there."""
        while not self._home.is_set():
            try:
                work()
            except (SQLAlchemyError, KombuError, RedisError, OSError) as error:
                self.errors.append(f"submit: {type(error).__name__}")
                time.sleep(0.2)
            else:
                return


def plan(chance: random.Random, most: int, *, files: bool, long: float) -> list[dict[str, Any]]:
    """1 to 9 steps; each needs up to three of those before it: forks and joins of all shapes."""
    size = chance.randint(1, max(1, most))
    shared = files and chance.random() < 0.2
    steps: list[dict[str, Any]] = []
    for number in range(size):
        earlier = [step["id"] for step in steps]
        needs = chance.sample(earlier, min(len(earlier), chance.choice((0, 1, 1, 1, 2, 2, 3))))
        steps.append(
            {
                "id": f"s{number}",
                "description": f"Step {number}",
                "needs": needs,
                "spec": {
                    "turns": chance.choice((1, 1, 2, 3)),
                    "seconds": chance.choice((0, 0.02, 0.05, 0.1, 0.1, 0.3, 0.6)),
                    "asks": chance.random() < 0.08,
                    "breaks": int(chance.random() < 0.05),
                    "files": files,
                    "shared": shared,
                    "eats": files and chance.random() < 0.1,
                    "dies": chance.random() < 0.002,
                },
            }
        )
        if chance.random() < long:
            steps[-1]["spec"] |= {"turns": 6, "seconds": 1.0}
    _delegate(steps)
    return steps


def _delegate(steps: list[dict[str, Any]]) -> None:
    """Some steps start subtasks, and some of those start theirs. Drawn from the plan itself, so that a seed
    still means the plans that it meant before."""
    chance = random.Random(json.dumps(steps))
    for step in steps:
        if chance.random() < DELEGATES:
            step["spec"]["delegates"] = [
                _part(chance, f"{step['id']}-{number}", step["spec"]["files"], deeper=0.2)
                for number in range(chance.choice((1, 2, 2, 3)))
            ]


def _part(chance: random.Random, key: str, files: bool, deeper: float) -> dict[str, Any]:
    part: dict[str, Any] = {
        "key": key,
        "turns": chance.choice((1, 1, 2)),
        "seconds": chance.choice((0, 0.05, 0.3)),
        "asks": chance.random() < 0.05,
        "files": files,
        "shared": files and chance.random() < 0.2,
    }
    if chance.random() < deeper:
        part["delegates"] = [_part(chance, f"{key}-0", files, deeper=0)]
    return part
