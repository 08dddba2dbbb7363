"""How a call is written down when the database, or what is to be written, is not as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import psycopg2
import pytest

from orchestrator.core import run_token
from orchestrator.core.assignment import Budget
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.db import spending
from orchestrator.db.breakers import Tried
from orchestrator.db.spending import Ended, NewCall, Tokens
from orchestrator.gateway.books import Books
from tests.integration.gateway_server import MODEL, issue
from tests.integration.ledger import TENANT, Ledger, step

GOOD = Ended("done", 200, None, Tokens(5, 5), Decimal(1), Tried.SUCCEEDED)
PRESUMED = Ended("done", None, "count-unusable", Tokens(9, 9, estimated=True), Decimal(2), Tried.SUCCEEDED)


@pytest.fixture
def reserved(ledger: Ledger) -> str:
    token = issue(ledger, ledger.take(ledger.task("t", step("a"))["a"]))
    call = NewCall("c", run_token.digest(token), "g", "anthropic", MODEL, "messages", True, None, 9)
    ledger.do(lambda connection: spending.reserve(connection, call, CircuitBreaker()))
    return call.id


def within(ledger: Ledger, work: Callable[[Books], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        books = Books(ledger.engine, TENANT, CircuitBreaker(), Budget())
        await asyncio.wait_for(work(books), 20)
        await books.close("g", 5)

    asyncio.run(run())


@pytest.mark.parametrize(
    "ended",
    [
        Ended("done", 200, None, Tokens(5, 2**40), Decimal(1), Tried.SUCCEEDED),
        Ended("failed", 200, "a\0b", Tokens(5, 5), Decimal(1), Tried.FAILED),
        Ended("unheard-of", 200, None, Tokens(5, 5), Decimal(1), Tried.SUCCEEDED),
    ],
    ids=["a count", "a text", "an outcome"],
)
def test_what_no_row_can_hold_is_settled_as_it_was_reserved(
    ledger: Ledger, reserved: str, ended: Ended
) -> None:
    async def settle(books: Books) -> None:
        await books.settle(reserved, ended, PRESUMED)

    within(ledger, settle)
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["error_code"], call["estimated"]) == ("done", "count-unusable", True)
    assert ledger.rows("SELECT spent_usd, spent_tokens FROM budgets") == [
        {"spent_usd": Decimal(2), "spent_tokens": 18}
    ]


def test_what_can_be_written_in_no_way_is_not_tried_for_ever(ledger: Ledger, reserved: str) -> None:
    """Its reservation ends with its claim."""
    hopeless = Ended("unheard-of", 200, None, Tokens(5, 5), Decimal(1), Tried.SUCCEEDED)

    async def settle(books: Books) -> None:
        await books.settle(reserved, hopeless, hopeless)

    within(ledger, settle)
    assert ledger.rows("SELECT ended_at FROM model_calls") == [{"ended_at": None}]


def test_a_call_is_settled_as_it_was_once_the_database_is_back(
    ledger: Ledger, reserved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.engine.dispose()
    pool: Any = ledger.engine.pool
    connect, refused = pool._creator, []

    def away_twice(*given: Any) -> Any:
        if len(refused) < 2:
            refused.append(given)
            raise psycopg2.OperationalError("the server is away")
        return connect(*given)

    monkeypatch.setattr(pool, "_creator", away_twice)

    async def settle(books: Books) -> None:
        await books.settle(reserved, GOOD, PRESUMED)

    within(ledger, settle)
    assert len(refused) == 2
    assert ledger.rows("SELECT outcome, estimated FROM model_calls") == [
        {"outcome": "done", "estimated": False}
    ]
