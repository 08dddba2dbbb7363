"""Transcripts of agents in Postgres, by the SDK's own rules for such a store."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from orchestrator.core.redaction import Redactor
from orchestrator.engine.ports import LeaseLost
from orchestrator.tasks.transcripts import PostgresTranscripts
from tests.agents_installed import with_claude
from tests.integration.ledger import Ledger

with_claude()

from claude_agent_sdk import SessionStore  # noqa: E402 - it may be missing
from claude_agent_sdk.testing import run_session_store_conformance  # noqa: E402

from orchestrator.agents.claude_transcripts import Mirror  # noqa: E402 - needs it

SECRET = "what-nobody-may-read-123456"


def store(ledger: Ledger, task: str = "t") -> PostgresTranscripts:
    """Of a step that is claimed."""
    ref = ledger.task(task)["work"]
    claimed: Any = ledger.claim(ref)
    return PostgresTranscripts(ledger.engine, ref, claimed.fence, Redactor([SECRET]))


def test_it_keeps_what_the_sdk_asks_of_a_store(ledger: Ledger) -> None:
    numbers = iter(range(100))

    def fresh() -> SessionStore:
        return cast("SessionStore", Mirror(store(ledger, f"task-{next(numbers)}")))

    missing = frozenset({"list_sessions", "list_session_summaries", "delete"})
    asyncio.run(run_session_store_conformance(fresh, skip_optional=missing))


def test_an_entry_that_is_sent_twice_is_kept_once_and_one_without_a_name_each_time(ledger: Ledger) -> None:
    kept = store(ledger)
    for _ in range(2):
        kept.append("p", "s", "", [{"type": "user", "uuid": "1"}, {"type": "title"}])
    assert kept.load("p", "s", "") == [{"type": "user", "uuid": "1"}, {"type": "title"}, {"type": "title"}]


def test_no_secret_is_kept(ledger: Ledger) -> None:
    kept = store(ledger)
    kept.append("p", "s", "", [{"type": "user", "message": {"content": f"use {SECRET}"}}])
    assert SECRET not in str(ledger.rows("SELECT entry FROM transcripts"))


def test_a_claim_that_was_lost_writes_nothing(ledger: Ledger) -> None:
    kept = store(ledger)
    stale = PostgresTranscripts(kept.engine, kept.step, kept.fence - 1, kept.redactor)
    with pytest.raises(LeaseLost):
        stale.append("p", "s", "", [{"type": "user"}])
    assert ledger.rows("SELECT 1 FROM transcripts") == []
