"""A worker process: its slots, its heartbeat, and how it starts and ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from billiard.process import current_process
from celery import signals
from celery.states import IGNORED

from orchestrator.agents.types import PROVIDERS
from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.verdict import StopReason
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.db import claims
from orchestrator.db.agents import Slot
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.queues.names import QueueName
from orchestrator.tasks import fleet, logs
from orchestrator.tasks.draining import Drain
from orchestrator.tasks.ending import end_by_loop
from orchestrator.tasks.evidence import check_store
from orchestrator.tasks.pulse import Pulse
from orchestrator.workspaces.errors import ArtifactStoreUnavailable, SandboxUnavailable
from orchestrator.workspaces.homes import HomeOwner
from orchestrator.workspaces.workspace import AttemptOwner

log: Final = structlog.get_logger(__name__)
T = TypeVar("T")
VERSION: Final = installed("orchestrator")
_IGNORED_AT_MOST: Final = 10
"""Of each `Ignore` Celery copies the whole traceback, a megabyte in a cycle of few objects; Python, which
counts objects, would look for it after a hundred of them."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Workplace:
    """What a worker process is given besides the wiring: who it is. One for all its threads."""

    wiring: Wiring
    name: str = ""
    queues: tuple[str, ...] = ()
    drain: Drain | None = None
    """Only in a process that became a worker."""

    @cached_property
    def boot_id(self) -> str:
        """Changes when the machine restarts: a pid alone means nothing then."""
        return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()

    @cached_property
    def pulse(self) -> Pulse:
        return Pulse(self.wiring, self._introduce, self._draining, self._clean, self._rest)

    def _draining(self) -> StopReason | None:
        if self.drain is None or not self.drain.is_asked():
            return None
        return StopReason.SHUTDOWN if self.drain.is_late() else StopReason.DRAIN

    @property
    def first_slot(self) -> int:
        """A prefork child is one slot, named after its place in the pool; threads count up from 1."""
        return int(getattr(current_process(), "index", 0)) + 1

    @contextmanager
    def slot(self) -> Iterator[str]:
        """Occupies a slot; gives its agent's id."""
        number, agent_id = self.pulse.take_slot(self.first_slot)
        try:
            yield agent_id
        finally:
            self.pulse.free_slot(number)

    def _introduce(self, number: int) -> Slot:
        settings = self.wiring.settings
        # Whose models the gateway can reach is looked up for each step: it may get a key later than this.
        agents = self.wiring.agents_with(PROVIDERS if settings.gateway_url else frozenset())
        name = self.name or f"agent@{socket.gethostname()}"
        return Slot(
            self.wiring.tenant_id,
            f"{name}/{number}",
            name.partition("@")[0],
            name.partition("@")[2] or socket.gethostname(),
            os.getpid(),
            self.boot_id,
            VERSION,
            self.queues,
            (*(name for name, one in agents.items() if one.is_usable), *sorted(settings.worker_capabilities)),
            (settings.model,) if agents["engine"].is_usable else (),
        )

    def _rest(self, rest: bool) -> None:
        fleet.tell(self.wiring, self.queues, [self.name], rest=rest)

    def _clean(self) -> None:
        """Workspaces of this machine whose attempt is over, and homes of steps that are, by their own record
        of whose they are."""
        try:
            removed = self.wiring.workspaces.sweep_orphans(self._live)
            removed += self.wiring.workspaces.homes.sweep(self._living)
        except (OSError, WorkspaceFault, OrchestratorError, SQLAlchemyError) as error:
            log.warning("clean_up_failed", error=type(error).__name__)
            return
        if removed:
            log.info("workspaces_removed", workspaces=removed)

    def _live(self, owners: Sequence[AttemptOwner]) -> set[AttemptOwner]:
        with self.wiring.engine.connect() as connection:
            found = claims.live_attempts(connection, [(owner.step_id, owner.attempt) for owner in owners])
        return {owner for owner in owners if (owner.step_id, owner.attempt) in found}

    def _living(self, owners: Sequence[HomeOwner]) -> set[HomeOwner]:
        with self.wiring.engine.connect() as connection:
            found = claims.unfinished(connection, [owner.step_id for owner in owners])
        return {owner for owner in owners if owner.step_id in found}


def attend(workplace: Workplace) -> None:
    """Ties a workplace to the life of the Celery worker that this process becomes."""

    def named(sender: Any, conf: Any, instance: Any, options: Any, **_: Any) -> None:
        if instance.app is not workplace.wiring.app:
            return  # another wiring's worker
        workplace.name = str(sender)
        workplace.drain = drain = Drain()
        end_by_loop(instance, drain, conf.worker_soft_shutdown_timeout)
        # A producer is answered at once when the broker is away; a worker has nobody who waits.
        conf.task_publish_retry = True
        _prepare(workplace, runs_steps=set(options.get("queues") or ()) != {str(QueueName.SYSTEM)})
        _serve(workplace, drain)

    signals.celeryd_init.connect(named, weak=False)


def _serve(workplace: Workplace, drain: Drain) -> None:
    ignored = 0

    def child_began(**_: Any) -> None:
        drain.begin(workplace.first_slot)
        # The parent's connections are the parent's: two processes on one socket garble both.
        workplace.wiring.engine.dispose(close=False)
        if hasattr(current_process(), "index"):  # the solo pool says that it starts a process, too
            gc.freeze()  # what was there before the fork stays, stays shared, and needs no looking at
            _begin(workplace, 1)

    def worker_began(sender: Any, **_: Any) -> None:
        if slots := _own_slots(sender.controller):
            _begin(workplace, slots)

    def taken(**_: Any) -> None:
        drain.take(workplace.first_slot)

    def put_down(state: str | None = None, **_: Any) -> None:
        nonlocal ignored
        drain.put_down(workplace.first_slot)
        if state == IGNORED:
            ignored += 1
            if ignored % _IGNORED_AT_MOST == 0:
                gc.collect()

    def ended(**_: Any) -> None:
        workplace.pulse.end()

    signals.worker_process_init.connect(child_began, weak=False)
    signals.worker_ready.connect(worker_began, weak=False)
    signals.task_prerun.connect(taken, weak=False)
    signals.task_postrun.connect(put_down, weak=False)
    signals.worker_process_shutdown.connect(ended, weak=False)
    signals.worker_shutdown.connect(ended, weak=False)


def _own_slots(controller: Any) -> int:
    """Of the main process; Celery's controller learns of its pool only after `celeryd_init`."""
    match str(controller.pool_cls.__module__).rpartition(".")[2]:
        case "prefork":
            return 0  # each child begins by itself
        case "solo":
            return 1
        case _:
            return int(controller.concurrency)


def _prepare(workplace: Workplace, *, runs_steps: bool) -> None:
    """Before the pool starts: logs without secrets, the store that all workers share and, in strict mode, a
    sandbox, or no start."""
    logs.configure(workplace.wiring.redactor)
    wrong = _asked_apart(lambda: _wrong_store(workplace.wiring))
    if runs_steps and not wrong:
        wrong, weak = _asked_apart(lambda: _sandbox(workplace.wiring)) or ("", "")
        if weak:
            log.warning("sandbox_weak", reason=weak, see="orchestrator doctor")
    if wrong:
        sys.exit(f"This worker can't start: {wrong}")


def _sandbox(wiring: Wiring) -> tuple[str, str]:
    """Why no command may run here, and what is weaker than intended where some may."""
    try:
        return "", wiring.workspaces.sandbox.warning or ""
    except SandboxUnavailable as unavailable:
        return unavailable.message, ""
    except (OSError, OrchestratorError) as error:
        log.warning("sandbox_not_checked", error=type(error).__name__)
        return "", ""


def _wrong_store(wiring: Wiring) -> str:
    """Why this machine's store can't be used; empty if it can, or if nobody can say now."""
    try:
        check_store(wiring)
    except ArtifactStoreUnavailable as unusable:
        return f"{unusable.message}\n{unusable.hint}"
    except (SQLAlchemyError, OrchestratorError) as error:
        log.warning("store_not_checked", error=type(error).__name__)
    return ""


def _asked_apart(question: Callable[[], T]) -> T | None:
    """The answer of a process of its own: the store's threads don't survive the forks of the pool. None: it
    died."""
    fork = multiprocessing.get_context("fork")
    theirs, ours = fork.Pipe(duplex=False)
    asked = fork.Process(target=lambda: ours.send(question()))
    asked.start()
    ours.close()
    try:
        answer: T | None = theirs.recv()
    except EOFError:
        answer = None
    asked.join()
    return answer


def _begin(workplace: Workplace, slots: int) -> None:
    """Makes this process's slots known. Without a database it works as soon as there is one."""
    workplace.queues = tuple(workplace.wiring.app.amqp.queues.consume_from)
    try:
        for number in range(workplace.first_slot, workplace.first_slot + slots):
            workplace.pulse.register(number)
    except SQLAlchemyError as error:
        log.warning("slot_not_registered", error=type(error).__name__)
    workplace.pulse.start()
