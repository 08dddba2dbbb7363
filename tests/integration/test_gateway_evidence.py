"""The evidence of calls goes on, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.core.redaction import Redactor
from orchestrator.db.run_tokens import Run
from orchestrator.db.sql import StepRef
from orchestrator.gateway import evidence
from orchestrator.gateway.dialects import MESSAGES, Request
from orchestrator.gateway.evidence import Evidence, Said
from tests.integration.ledger import TENANT, Ledger

RUN = Run(StepRef(TENANT, "t", "w", "s"), "t", "sha", 1, 0, "engine", ())


class Store:
    """Keeps the keys of what it is given, but for one that breaks it."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.keys: list[str | None] = []
        self.documents: list[str] = []

    def put(self, data: bytes, key: str | None = None) -> object:
        if key == "calls/t/broken.json":
            raise self.error
        self.keys.append(key)
        self.documents.append(data.decode())
        return None


def said(call_id: str, content: Any = "Hello.", reply: Any = None, reply_bytes: int = 0) -> Said:
    body = {"messages": [{"role": "user", "content": content}]}
    return Said(RUN, call_id, MESSAGES, Request("m", True, None, body, b"{}"), reply, reply_bytes)


def written(ledger: Ledger, store: Store, *calls: Said) -> list[str | None]:
    async def run() -> None:
        kept = Evidence(ledger.engine, lambda: store, Redactor())
        for call in calls:
            kept.take(call)
        writing = asyncio.create_task(kept.write())
        await kept.written(20)
        assert not writing.done()
        writing.cancel()

    asyncio.run(run())
    return store.keys


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (said("broken"), OSError("disk full")),
        (said("broken"), MemoryError()),
        (said("broken", nested(50_000)), OSError()),
        (said("broken", reply=nested(50_000)), OSError()),
    ],
    ids=["store", "memory", "deep request", "deep reply"],
)
def test_a_call_that_can_not_be_kept_ends_the_evidence_of_no_other(
    ledger: Ledger, bad: Said, error: Exception
) -> None:
    keys = written(ledger, Store(error), said("before"), bad, said("after"))
    assert keys == ["calls/t/before.json", "calls/t/after.json"]


def test_what_waits_is_bounded_by_requests_and_replies_together(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST_WAITING", 100)
    keys = written(ledger, Store(OSError()), said("a", reply_bytes=90), said("b", reply_bytes=90), said("c"))
    assert keys == ["calls/t/a.json", "calls/t/c.json"]


def test_of_a_text_that_is_too_long_to_be_cleaned_its_digest_is_kept(ledger: Ledger) -> None:
    store = Store(OSError())
    written(ledger, store, said("a", content=[{"type": "image", "data": "x" * 600_000}, {"text": "short"}]))
    (document,) = store.documents
    assert "short" in document
    assert "[600,000 characters, sha256 " in document
    assert "xxxx" not in document
