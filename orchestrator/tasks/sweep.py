"""The sweep: expires leases, publishes what is due, repairs what was lost. Two at once do no harm.

It runs by beat on the `system` queue and, since that may be away too, in a loop of the API process. In a run
without faults it publishes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

import structlog
from kombu.exceptions import KombuError

from orchestrator.bootstrap import Wiring
from orchestrator.commands.publication import following
from orchestrator.core.priority import Priority, raised
from orchestrator.core.states import Event, WaitingOn
from orchestrator.db import (
    agents,
    bounds,
    entries,
    lineage,
    publishing,
    statistics,
    subtasks,
    sweep,
    transitions,
)
from orchestrator.db.connect import Connection, SQLAlchemyError
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.sweep import Due, Unclaimed
from orchestrator.db.transitions import Applied
from orchestrator.db.waking import due, wake
from orchestrator.queues.results import show
from orchestrator.tasks.publish import cancel_forsaken, hand_on_slot, publish, resend_entry, send_step
from orchestrator.tasks.silence import end_silence

log: Final = structlog.get_logger(__name__)
_LOCK: Final = 0x6F7263_02
_SILENT_LEASES: Final = 3
_BROKER_SECONDS: Final[Mapping[str, float]] = MappingProxyType(
    {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "connect_timeout": 1.0}
)
"""How long the sweep waits for one word of the broker; elsewhere an answer may take half a minute."""


@dataclass(slots=True)
class Swept:
    """What one sweep did, by number of rows."""

    expired: int = 0
    timed: int = 0
    cancelled: int = 0
    late: int = 0
    published: int = 0
    raised: int = 0
    delivered: int = 0
    joins: int = 0
    woken: int = 0
    forsaken: int = 0
    silenced: int = 0
    agents_lost: int = 0
    skipped: bool = field(default=False)

    @property
    def quiet(self) -> bool:
        did = (self.expired, self.cancelled, self.late, self.published, self.delivered, self.joins)
        return not any((*did, self.woken, self.forsaken, self.silenced))


def run_sweep(wiring: Wiring) -> Swept:
    """One sweep. Raises whatever keeps it from Postgres; a broker that is away is logged."""
    with wiring.engine.connect() as guard:
        if not sweep.take_turn(guard, _LOCK):
            return Swept(skipped=True)
        swept = _sweep(wiring)
        guard.rollback()
    if not swept.quiet:
        log.info("swept", **asdict(swept))
    return swept


def _sweep(wiring: Wiring) -> Swept:
    settings, swept = wiring.settings, Swept()
    with wiring.engine.begin() as connection:
        sweep.note_sweep(connection, f'"{wiring.clock().isoformat()}"')
        just_up = sweep.postgres_up_for(connection) < settings.lease
        swept.joins = sweep.repair_joins(connection)
        expired = [] if just_up else sweep.expired_leases(connection)
        timed = sweep.timed(connection)
        overdue = sweep.overdue_cancels(connection, settings.cancel_grace)
        late = [] if just_up else bounds.late_steps(connection, settings.cancel_grace)
        forgotten = subtasks.forgotten(connection, settings.publish_grace)
        left_behind = lineage.left_behind(connection)
        silent = settings.lease * _SILENT_LEASES
        swept.agents_lost = 0 if just_up else len(agents.lose(connection, silent))
        after_outage = sweep.postgres_up_for(connection) < settings.lease * 2
    answers = _answers(wiring)
    swept.cancelled = _each(wiring, overdue, _cancel, publishes=answers)
    swept.late = _each(wiring, late, lambda c, d: bounds.end_late(c, d.step), publishes=answers)
    swept.expired = _each(
        wiring,
        expired,
        lambda c, d: transitions.expire(c, d.step, d.fence, uncounted=after_outage),
        publishes=answers,
    )
    swept.timed = _each(wiring, timed, _time_came, publishes=answers)
    swept.woken = _each(wiring, forgotten, lambda c, d: subtasks.wake_waiting(c, d.step), publishes=answers)
    if not answers:
        return swept
    swept.forsaken = sum(_cancel_forsaken(wiring, task) for task in left_behind)
    swept.silenced = 0 if just_up else end_silence(wiring)
    with wiring.engine.connect() as connection:
        unclaimed = sweep.unclaimed(connection, settings.publish_grace)
        starved = sweep.starved(connection, settings.ageing)
    lost = _lost(wiring, unclaimed)
    swept.published = sum(_publish_again(wiring, one.step, one.priority) for one in lost)
    sent = {one.step for one in lost}
    swept.raised = sum(
        _publish_again(wiring, one.step, raised(one.priority, one.waited, settings.ageing))
        for one in starved
        if one.step not in sent
    )
    swept.delivered = _deliver(wiring)
    _show_again(wiring)
    _refresh_statistics(wiring)
    return swept


def _answers(wiring: Wiring) -> bool:
    """Whether the broker can be spoken to now. What is to be sent is in the rows, and can wait; with one that
    hangs, leases and cancels would have to wait, too, for minutes."""
    with wiring.app.connection_for_read(transport_options=dict(_BROKER_SECONDS)) as connection:
        away: tuple[type[BaseException], ...] = (OSError, KombuError, *connection.connection_errors)
        try:
            connection.channel()
        except away as error:
            log.warning("broker_away", error=type(error).__name__)
            return False
    return True


def _each(
    wiring: Wiring,
    found: Iterable[Due],
    apply: Callable[[Connection, Due], Applied | None],
    *,
    publishes: bool,
) -> int:
    """Each row in a transaction of its own: one that fails doesn't keep the others waiting."""
    done = 0
    for one in found:
        try:
            with wiring.engine.begin() as connection:
                sweep.pass_by_locked(connection)
                applied = apply(connection, one)
        except SQLAlchemyError as error:
            log.warning("sweep_stumbled", step=one.step.step_id, error=type(error).__name__)
            continue
        if applied is None:
            continue
        done += 1
        if not publishes:
            continue
        publish(wiring, following(one.step.task, applied.settled, (one.step,) if applied.released else ()))
        hand_on_slot(wiring)
    return done


def _cancel_forsaken(wiring: Wiring, task: TaskRef) -> bool:
    try:
        return cancel_forsaken(wiring, task)
    except SQLAlchemyError as error:
        log.warning("sweep_stumbled", task=task.task_id, error=type(error).__name__)
        return False


def _cancel(connection: Connection, one: Due) -> Applied | None:
    return transitions.cancel_step(connection, one.step, None, "its agent did not stop in time")


def _time_came(connection: Connection, one: Due) -> Applied | None:
    if one.waiting_on in {WaitingOn.RETRY_BACKOFF, None}:
        return due(connection, one.step)
    return wake(connection, one.step, Event.WAKE, {"why": "the time came"})


def _lost(wiring: Wiring, unclaimed: list[Unclaimed]) -> list[Unclaimed]:
    """Those whose message is gone, not merely far behind in a long queue."""
    if not unclaimed:
        return []
    empty = {priority for priority in {one.priority for one in unclaimed} if _is_empty(wiring, priority)}
    waiting = [one.step for one in unclaimed if one.priority not in empty]
    with wiring.engine.connect() as connection:
        overtaken = sweep.overtaken(connection, waiting, wiring.settings.publish_grace) if waiting else set()
    return [one for one in unclaimed if one.priority in empty or one.step in overtaken]


def _is_empty(wiring: Wiring, priority: Priority) -> bool:
    """Whether no message of this priority waits at the broker: then what should be there was lost."""
    queue = wiring.topology.destination(priority).queue.value
    with wiring.app.connection_for_read() as connection:
        away: tuple[type[BaseException], ...] = (OSError, KombuError, *connection.connection_errors)
        missing: tuple[type[BaseException], ...] = connection.channel_errors
        try:
            channel: Any = connection.channel()
            return int(channel.queue_declare(queue, passive=True).message_count) == 0
        except away as error:
            log.warning("broker_away", error=type(error).__name__)
            return False
        except missing:
            return True  # no such queue: nothing was ever sent to it, or the broker was emptied


def _publish_again(wiring: Wiring, step: StepRef, priority: Priority) -> bool:
    try:
        with wiring.engine.begin() as connection:
            sweep.pass_by_locked(connection)
            if not sweep.mark_published(connection, step, priority):
                return False
    except SQLAlchemyError as error:
        log.warning("sweep_stumbled", step=step.step_id, error=type(error).__name__)
        return False
    try:
        with wiring.engine.connect() as connection:
            found = publishing.queued(connection, [step])
        for one in found:
            send_step(wiring, one)
    except Exception as error:  # noqa: BLE001 - whatever the broker throws: the next sweep tries again
        log.warning("publish_failed", step=step.step_id, error=type(error).__name__)
        return False
    return True


def _show_again(wiring: Wiring) -> None:
    """Redis may have forgotten what those who watch their tasks should see."""
    with wiring.engine.connect() as connection:
        watched = entries.watched(connection)
    try:
        for task, status in watched:
            show(wiring.app, task.task_id, status.value)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("states_not_shown", error=type(error).__name__)


def _refresh_statistics(wiring: Wiring) -> None:
    try:
        with wiring.engine.begin() as connection:
            sweep.pass_by_locked(connection)
            statistics.refresh(connection)
    except SQLAlchemyError as error:
        log.warning("statistics_not_refreshed", error=type(error).__name__)


def _deliver(wiring: Wiring) -> int:
    grace = wiring.settings.publish_grace + timedelta(seconds=1)
    with wiring.engine.connect() as connection:
        waiting = entries.undelivered(connection, grace)
    if not waiting:
        return 0
    emptied = [priority for priority in waiting if _is_empty(wiring, priority)]
    with wiring.engine.begin() as connection:
        lost = entries.take_lost(connection, emptied, grace)
    for task in lost:
        try:
            resend_entry(wiring, task)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("publish_failed", task=task.task_id, error=type(error).__name__)
    return len(lost)
