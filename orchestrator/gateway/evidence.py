"""What was said to models and what they replied, redacted, in the artifact store: one document for each call.

Of a request it holds what is new since its run's previous call; system prompt and tools once, as long as they
stay the same. Written after the call and beside it: a store that is slow or away delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from orchestrator.core.redaction import Redactor
from orchestrator.db import spending
from orchestrator.db.connect import Engine
from orchestrator.db.run_tokens import Run
from orchestrator.gateway.dialects import Dialect, Request
from orchestrator.gateway.observing import joined

log: Final = structlog.get_logger(__name__)
MOST_WAITING: Final = 64 * 1024 * 1024
"""Bytes of requests and replies that wait to be written; what comes beyond is let go, and said so."""
_LONGEST_TEXT: Final = 500_000
"""Characters; of a longer one, an image as a rule, length and digest are kept."""
_MOST_CALLS: Final = 10_000
_RUNS: Final = 1000
_ONCE: Final = ("system", "instructions", "tools")


class Store(Protocol):
    def put(self, data: bytes, key: str | None = None) -> object:
        """May raise OrchestratorError."""


@dataclass(frozen=True, slots=True)
class Said:
    """One call that has ended."""

    run: Run
    call_id: str
    dialect: Dialect
    request: Request
    reply: Any
    reply_bytes: int

    @property
    def size(self) -> int:
        """Bytes, as they came; parsed it is more."""
        return len(self.request.body) + self.reply_bytes


@dataclass(frozen=True, slots=True)
class _Known:
    """Of a run's latest call: how many items it had, the last one's digest, and what is kept once."""

    items: int = 0
    last: str = ""
    once: Mapping[str, str] | None = None


class Evidence:
    """Takes calls one after the other; `written` waits for all that were taken."""

    def __init__(self, engine: Engine, store: Callable[[], Store], redactor: Redactor) -> None:
        self._engine = engine
        self._store = store
        self._redactor = redactor
        self._queue: asyncio.Queue[Said] = asyncio.Queue()
        self._waiting = 0
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def take(self, said: Said) -> None:
        if self._waiting + said.size > MOST_WAITING or self._queue.qsize() >= _MOST_CALLS:
            log.warning("evidence_let_go", call=said.call_id, reason="too much waits to be written")
            return
        self._waiting += said.size
        self._queue.put_nowait(said)

    async def write(self) -> None:
        """For ever."""
        while True:
            said = await self._queue.get()
            try:
                await asyncio.to_thread(self._keep, said)
            except Exception as error:  # noqa: BLE001 - one run's request must not end the evidence of all
                log.warning("evidence_not_kept", call=said.call_id, error=type(error).__name__)
            finally:
                self._waiting -= said.size
                self._queue.task_done()

    async def written(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), seconds)

    def _keep(self, said: Said) -> None:
        document = self._redactor.value(
            {
                "call_id": said.call_id,
                "task_id": said.run.step.task_id,
                "step_id": said.run.step.step_id,
                "fence": said.run.fence,
                "agent_type": said.run.agent_type,
                "dialect": said.dialect.name,
                "request": _without_longest(self._new(said)),
                "reply": _without_longest(joined(said.reply)),
            }
        )
        key = f"calls/{said.run.step.task_id}/{said.call_id}.json"
        self._store().put(json.dumps(document, ensure_ascii=True).encode(), key)
        with self._engine.begin() as connection:
            spending.keep_evidence(connection, said.run.step.tenant_id, said.call_id, key)

    def _new(self, said: Said) -> dict[str, Any]:
        """Of the request: parameters, and what the run's previous call hadn't said yet."""
        content, known = said.request.content, self._known.pop(said.run.sha256, _Known())
        items = content.get(said.dialect.items_field)
        listed = items if isinstance(items, list) else [items]
        once = {name: digest(content[name]) for name in _ONCE if name in content}
        goes_on = 0 < known.items <= len(listed) and digest(listed[known.items - 1]) == known.last
        before = known.items if goes_on else 0
        self._known[said.run.sha256] = _Known(len(listed), digest(listed[-1]) if listed else "", once)
        while len(self._known) > _RUNS:
            self._known.popitem(last=False)
        same = known.once or {}
        return {
            "parameters": {
                name: value
                for name, value in content.items()
                if name not in _ONCE and name != said.dialect.items_field
            },
            **{f"{name}_sha256": found for name, found in once.items()},
            **{name: content[name] for name, found in once.items() if same.get(name) != found},
            "items_before": before,
            "items": listed[before:],
        }


def digest(value: Any) -> str:
    """The same wherever the mark stands up to which a provider may cache."""
    return hashlib.sha256(json.dumps(_unmarked(value), sort_keys=True).encode()).hexdigest()


def _without_longest(value: Any) -> Any:
    """What cleans texts holds up all else meanwhile, and what was half cut off would not be cleaned."""
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        found = hashlib.sha256(value.encode(errors="replace")).hexdigest()
        return f"[{len(value):,} characters, sha256 {found}]"
    if isinstance(value, dict):
        return {name: _without_longest(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_longest(inner) for inner in value]
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unmarked(inner) for name, inner in value.items() if name != "cache_control"}
    if isinstance(value, list):
        return [_unmarked(inner) for inner in value]
    return value
