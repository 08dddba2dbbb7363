"""The gateway's accounts: the rows, reached from an event loop by threads of its own."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import structlog

from orchestrator.core.assignment import Budget
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.db import gateways, run_tokens, spending
from orchestrator.db.connect import Connection, Engine, SQLAlchemyError, is_away
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended, NewCall, Refusal

log: Final = structlog.get_logger(__name__)
T = TypeVar("T")
_KNOWN_SECONDS: Final = 30.0
_MOST_KNOWN: Final = 10_000
_STRANGERS: Final = 2
"""Threads for tokens that nobody has seen yet: strangers can't keep the others from the rows."""
_MOST_STRANGERS: Final = 200
_THREADS: Final = 8
_SETTLERS: Final = 3
"""Threads, and connections, that may wait for the row of a step that somebody keeps for long."""
_ANSWER_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = (0.2, 1.0, 5.0)
UNREADY: Final = Refusal(
    "gateway-unready", "The gateway can't reach its database, so it lets nothing through."
)


class Books:
    """What is reserved and settled. A database that is away is a refusal, never a free pass; what was used
    meanwhile is written down when it returns."""

    def __init__(self, engine: Engine, tenant_id: str, rule: CircuitBreaker, of_step: Budget) -> None:
        self._engine = engine
        self._tenant_id = tenant_id
        self._rule = rule
        self._of_step = of_step
        self._threads = ThreadPoolExecutor(_THREADS, "books")
        self._settlers = ThreadPoolExecutor(_SETTLERS, "settling")
        self._settling: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._known: OrderedDict[str, float] = OrderedDict()
        self._looking = asyncio.Semaphore(_STRANGERS)
        self._strangers = 0

    async def let_in(self, sha256: str) -> Refusal | None:
        """Whether more than the head of this token's request may be read: it was good a short while ago. That
        it still is, is for `reserve` and `find` to say."""
        now = time.monotonic()
        if self._known.get(sha256, 0.0) > now:
            return None
        if self._strangers >= _MOST_STRANGERS:
            return Refusal("gateway-unready", "Too many unknown tokens are being looked up.")
        self._strangers += 1
        try:
            async with self._looking:
                found = await self.find(sha256)
        finally:
            self._strangers -= 1
        if isinstance(found, Refusal):
            return found
        self._known[sha256] = time.monotonic() + _KNOWN_SECONDS
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return None

    async def find(self, sha256: str) -> Run | Refusal:
        """Whose token it is; one that is no good is a refusal."""
        try:
            run = await self._bounded(lambda connection: run_tokens.find(connection, sha256))
        except (SQLAlchemyError, TimeoutError) as error:
            return _unready(error)
        return run or Refusal("run-token-invalid", "This token is not that of a run that goes on.")

    async def look(self, call: NewCall) -> Run | Refusal:
        """For what costs nothing, and is let through as what does."""
        try:
            return await self._bounded(
                lambda connection: spending.look(connection, call, self._rule, self._of_step)
            )
        except (SQLAlchemyError, TimeoutError) as error:
            return _unready(error)

    async def reserve(self, call: NewCall) -> Run | Refusal:
        asked = self._begin(lambda connection: spending.reserve(connection, call, self._rule, self._of_step))
        try:
            found = await asyncio.wait_for(asyncio.shield(asked), _ANSWER_SECONDS)
        except SQLAlchemyError as error:
            return _unready(error)
        except (TimeoutError, asyncio.CancelledError) as late:
            asked.add_done_callback(lambda done: self._take_back(done, call))
            if isinstance(late, asyncio.CancelledError):
                raise
            return _unready(late)
        if isinstance(found, Refusal) and found.code == "run-token-invalid":
            self._known.pop(call.sha256, None)
        return found

    def settle(self, run: Run, call_id: str, ended: Ended, presumed: Ended) -> asyncio.Task[None]:
        """Goes on until it is written, whatever becomes of who waits for it. `presumed` is written instead if
        the database will not have `ended`."""
        task = asyncio.create_task(self._settle_in_turn(run, call_id, ended, presumed))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def beat(self, gateway_id: str, url: str, providers: list[str]) -> None:
        """Raises SQLAlchemyError."""
        await self._begin(
            lambda connection: gateways.beat(connection, self._tenant_id, gateway_id, url, providers)
        )

    async def close(self, gateway_id: str, seconds: float) -> None:
        """Waits so long for what is still to be settled."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=seconds)
        try:
            await self._bounded(lambda connection: gateways.leave(connection, self._tenant_id, gateway_id))
        except (SQLAlchemyError, TimeoutError) as error:
            log.warning("gateway_left_unheard", error=type(error).__name__)
        for task in self._settling:
            task.cancel()
        for threads in (self._threads, self._settlers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, work: Callable[[Connection], T], threads: ThreadPoolExecutor | None = None
    ) -> asyncio.Future[T]:
        def within() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return asyncio.get_running_loop().run_in_executor(threads or self._threads, within)

    async def _bounded(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.wait_for(self._begin(work), _ANSWER_SECONDS)

    def _take_back(self, done: asyncio.Future[Run | Refusal], call: NewCall) -> None:
        """It was reserved after all, when nobody waited for it any more."""
        if done.cancelled() or done.exception() is not None or isinstance(done.result(), Refusal):
            return
        self._begin(lambda connection: spending.release(connection, self._tenant_id, call.id))

    async def _settle_in_turn(self, run: Run, call_id: str, ended: Ended, presumed: Ended) -> None:
        """One of a step after the other, since they wait for the same rows: the others' get on meanwhile."""
        turn = self._turns.setdefault(run.step.step_id, asyncio.Lock())
        async with turn:
            await self._settle(call_id, ended, presumed)

    async def _settle(self, call_id: str, ended: Ended, presumed: Ended) -> None:
        """Tries for ever what a database that is away may take later, and nothing else twice."""
        tries = 0
        while True:
            try:
                settled = await self._write(call_id, ended)
                break
            except Exception as error:  # noqa: BLE001 - also the driver's own, for what it can't spell
                away = is_away(error)
                log.warning("call_not_settled_yet", call=call_id, error=type(error).__name__, away=away)
                if not away and ended is presumed:
                    log.error("call_not_settled", call=call_id, error=type(error).__name__)  # noqa: TRY400
                    return
                if not away:
                    ended = presumed
                    continue
                await asyncio.sleep(_AGAIN_SECONDS[min(tries, len(_AGAIN_SECONDS) - 1)])
                tries += 1
        if settled is not None and settled.warn:
            await self._warn(settled)

    def _write(self, call_id: str, ended: Ended) -> asyncio.Future[spending.Settled | None]:
        return self._begin(
            lambda connection: spending.settle(connection, self._tenant_id, call_id, ended, self._rule),
            self._settlers,
        )

    async def _warn(self, settled: spending.Settled) -> None:
        try:
            await self._begin(lambda connection: spending.warn(connection, settled.root), self._settlers)
        except SQLAlchemyError as error:  # the next call that is settled warns
            log.warning("budget_not_warned_of", task=settled.root.task_id, error=type(error).__name__)


def _unready(error: BaseException) -> Refusal:
    log.warning("database_away", error=type(error).__name__)
    return UNREADY
