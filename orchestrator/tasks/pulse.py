"""A worker process's heartbeat: one thread keeps its slots and all that they carry out alive.

Nothing else may hold it up: what its steps say is written by a thread of its own, so is what is left on disk
tidied up, and what needs no database is looked at where nobody waits for a Postgres that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.priority import Priority
from orchestrator.core.verdict import StopReason
from orchestrator.db import agents, claims, interventions, waking
from orchestrator.db.agents import Slot
from orchestrator.db.claims import Beat, Claimed
from orchestrator.db.connect import SQLAlchemyError, is_lost
from orchestrator.tasks.branches import follow_rows
from orchestrator.tasks.link import StepLink

log: Final = structlog.get_logger(__name__)
_LOOK: Final = 0.5
_OWN_END: Final = 0.8
"""Part of the lease after which a worker that hears nothing from Postgres stops on its own."""
_TIDY_AFTER_SWEEPS: Final = 6
"""Looking for workspaces that nobody owns any more costs a look at the disk: not at each sweep."""


@dataclass(slots=True)
class _Carried:
    claimed: Claimed
    link: StepLink
    agent_id: str
    since: float
    heard: float = field(default=0.0)
    acknowledged: set[str] = field(default_factory=set)


class Pulse:
    """Registers slots, beats for them and for the steps in them, and passes on what people want.

    `introduce` makes the row of slot n; `draining` says, in all processes of a worker that is told to end,
    how they are to stop; `rest` makes the worker stop taking messages, or begin again.
    """

    def __init__(
        self,
        wiring: Wiring,
        introduce: Callable[[int], Slot],
        draining: Callable[[], StopReason | None],
        clean: Callable[[], None],
        rest: Callable[[bool], None],
    ) -> None:
        self._wiring = wiring
        self._introduce = introduce
        self._draining = draining
        self._clean = clean
        self._rest = rest
        self._rests = False
        self._urgent = {
            priority: wiring.topology.destination(priority).queue.value
            for priority in (Priority.CRITICAL, Priority.HIGH)
        }
        self._telling: threading.Thread | None = None
        self._lock = threading.Lock()
        self._registering = threading.Lock()
        self._slots: dict[int, Slot] = {}
        self._taken: set[int] = set()
        self._carried: dict[str, _Carried] = {}
        self._ended = threading.Event()
        self._begun = False

    def start(self) -> None:
        """Begins to beat; a slot is registered when it is first taken."""
        with self._lock:
            begun, self._begun = self._begun, True
        if begun:
            return
        settings = self._wiring.settings
        lease = settings.lease.total_seconds()
        for name, work, seconds in (
            ("heartbeat", self._beat, lease / 4),
            ("grace", self._look, min(_LOOK, lease / 8)),
            ("observations", self._keep_up, _LOOK),
            ("tidying", self._tidy, settings.sweep_every.total_seconds() * _TIDY_AFTER_SWEEPS),
        ):
            threading.Thread(target=self._repeat, args=(work, seconds), name=name, daemon=True).start()

    def end(self) -> None:
        """The worker ends in order: its slots are released."""
        self._ended.set()
        with self._lock:
            ids = [slot.agent_id for slot in self._slots.values()]
        if ids:
            try:
                with self._wiring.engine.begin() as connection:
                    agents.release(connection, self._wiring.tenant_id, ids)
            except SQLAlchemyError as error:
                log.warning("slots_not_released", error=type(error).__name__)

    def register(self, number: int) -> None:
        """Makes slot `number` known before it has anything to do; once, or it would lose what it has."""
        with self._registering:
            if number in self._slots:
                return
            slot = self._introduce(number)
            with self._wiring.engine.begin() as connection:
                agents.register(connection, slot)
                waking.agent_came(connection, slot.tenant_id)
            with self._lock:
                self._slots[number] = slot

    def take_slot(self, first: int) -> tuple[int, str]:
        """A free slot from number `first` on: its number and its agent's id.

        A slot that Postgres doesn't know yet is made known; if that can't be done now, the claim will wait
        for it.
        """
        with self._lock:
            number = first
            while number in self._taken:
                number += 1
            self._taken.add(number)
            known = number in self._slots
        if not known:
            try:
                self.register(number)
            except SQLAlchemyError as error:
                log.warning("slot_not_registered", error=type(error).__name__)
        return number, self._introduce(number).agent_id

    def free_slot(self, number: int) -> None:
        with self._lock:
            self._taken.discard(number)

    def carry(self, claimed: Claimed, link: StepLink, agent_id: str) -> None:
        """From now on this claim's lease is prolonged."""
        now = time.monotonic()
        with self._lock:
            self._carried[claimed.step.step_id] = _Carried(claimed, link, agent_id, now, now)
        self.start()

    def put_down(self, claimed: Claimed) -> None:
        with self._lock:
            carried = self._carried.get(claimed.step.step_id)
            if carried is not None and carried.claimed.fence == claimed.fence:
                del self._carried[claimed.step.step_id]

    def _repeat(self, work: Callable[[], None], seconds: float) -> None:
        due = time.monotonic() + seconds
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + seconds
            try:
                work()
            except Exception:
                log.exception("pulse_stumbled", thread=threading.current_thread().name)

    def _keep_up(self) -> None:
        """It may wait for a task's row, which a sibling step keeps while it merges."""
        for carried in self._all():
            carried.link.keep_up()

    def _tidy(self) -> None:
        """It may wait for a disk, or for a mirror that somebody fetches into."""
        self._clean()
        follow_rows(self._wiring)

    def _all(self) -> list[_Carried]:
        with self._lock:
            return list(self._carried.values())

    def _look(self) -> None:
        """What needs no database: the worker's own end, slices, silence, and what outlives its stop."""
        now = time.monotonic()
        lease, slice_ = self._wiring.settings.lease, self._wiring.settings.slice
        for carried in self._all():
            if (told := self._draining()) is not None:
                carried.link.stop.set(told)
            elif timedelta(seconds=now - carried.since) >= slice_:
                carried.link.stop.set(StopReason.SLICE)
            if now - carried.heard >= lease.total_seconds() * _OWN_END:
                carried.link.stop.set(StopReason.LEASE_LOST)
            carried.link.grace.look(now)

    def _beat(self) -> None:
        """A row that somebody keeps for long holds up the beat of its own step alone."""
        beats: list[Callable[[], None]] = [partial(self._beat_for, carried) for carried in self._all()]
        for beat in (*beats, self._beat_for_slots):
            try:
                beat()
            except SQLAlchemyError as error:
                log.warning("heartbeat_missed", error=type(error).__name__)
                if is_lost(error):
                    return

    def _beat_for(self, carried: _Carried) -> None:
        before = time.monotonic()
        moved = carried.link.take_moved()
        with self._wiring.engine.begin() as connection:
            beat = claims.heartbeat(
                connection,
                carried.claimed.step,
                carried.claimed.fence,
                self._wiring.settings.lease,
                moved=moved,
                urgent=self._urgent,
                patience=self._wiring.settings.publish_grace,
            )
        if beat is None:
            self._lost(carried)
            return
        carried.heard = before
        self._acknowledge(carried, beat)
        if beat.cancel:
            carried.link.stop.set(StopReason.CANCEL)
        elif beat.exceeded:
            carried.link.stop.set(StopReason(beat.exceeded))
        elif beat.pause:
            carried.link.stop.set(StopReason.PAUSE)
        elif beat.urgent:
            carried.link.stop.set(StopReason.URGENT)

    def _acknowledge(self, carried: _Carried, beat: Beat) -> None:
        """Once for each command, in a transaction of its own: nobody may wait for it with the lease's row."""
        for command, is_asked in (("cancel", beat.cancel), ("pause", beat.pause)):
            if is_asked and command not in carried.acknowledged:
                with self._wiring.engine.begin() as connection:
                    interventions.acknowledge(connection, carried.claimed.step.task, command)
                carried.acknowledged.add(command)

    def _lost(self, carried: _Carried) -> None:
        with self._lock:
            still = self._carried.get(carried.claimed.step.step_id) is carried
        if still:
            carried.link.stop.set(StopReason.LEASE_LOST)

    def _beat_for_slots(self) -> None:
        with self._lock:
            ids = [slot.agent_id for slot in self._slots.values()]
        with self._wiring.engine.begin() as connection:
            asked = agents.beat(connection, self._wiring.tenant_id, ids)
        for carried in self._all():
            if asked.get(carried.agent_id):
                carried.link.stop.set(StopReason.DRAIN)
        self._follow(any(asked.values()))

    def _follow(self, asked_to_rest: bool) -> None:
        """The worker's list of queues follows the rows: it may have missed the word that was sent to it.

        In a thread of its own, since a broker that is away must not hold up the beat; said again with the
        next one, if it didn't get through.
        """
        if asked_to_rest == self._rests or (self._telling is not None and self._telling.is_alive()):
            return

        def tell() -> None:
            try:
                self._rest(asked_to_rest)
                self._rests = asked_to_rest
            except Exception as error:  # noqa: BLE001 - whatever the broker throws
                log.warning("worker_not_told", rest=asked_to_rest, error=type(error).__name__)

        self._telling = threading.Thread(target=tell, name="rest", daemon=True)
        self._telling.start()
