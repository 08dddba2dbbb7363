"""How a call is written down when the database, or what is to be written, is not as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from orchestrator.core import run_token
from orchestrator.core.assignment import Budget
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.db import spending
from orchestrator.db.breakers import Tried
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended, NewCall, Tokens
from orchestrator.db.sql import StepRef
from orchestrator.gateway.books import Books
from tests.integration.gateway_server import MODEL, issue
from tests.integration.ledger import TENANT, Ledger, step

GOOD = Ended("done", 200, None, Tokens(5, 5), Decimal(1), Tried.SUCCEEDED)
PRESUMED = Ended("done", None, "count-unusable", Tokens(9, 9, estimated=True), Decimal(2), Tried.SUCCEEDED)
RUN = Run(StepRef(TENANT, "t", "w", "s"), "t", "sha", 1, 0, "engine", ())


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
        await books.settle(RUN, reserved, ended, PRESUMED)

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
        await books.settle(RUN, reserved, hopeless, hopeless)

    within(ledger, settle)
    assert ledger.rows("SELECT ended_at FROM model_calls") == [{"ended_at": None}]


def test_a_call_is_settled_as_it_was_once_the_database_is_back(
    ledger: Ledger, reserved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.engine.dispose()
    pool: Any = ledger.engine.pool
    connect = pool._creator
    refused: list[Any] = []

    def away_twice(*given: Any) -> Any:
        if len(refused) < 2:
            refused.append(given)
            raise psycopg2.OperationalError("the server is away")
        return connect(*given)

    monkeypatch.setattr(pool, "_creator", away_twice)

    async def settle(books: Books) -> None:
        await books.settle(RUN, reserved, GOOD, PRESUMED)

    within(ledger, settle)
    assert len(refused) == 2
    assert ledger.rows("SELECT outcome, estimated FROM model_calls") == [
        {"outcome": "done", "estimated": False}
    ]


def test_a_step_whose_row_is_kept_for_long_holds_up_no_other_s_calls(ledger: Ledger) -> None:
    """As a merge does; calls that end meanwhile wait for it, all of them in one thread."""
    kept, other = (ledger.take(ledger.task(task, step("a"))["a"]) for task in ("kept", "other"))
    calls: dict[str, list[NewCall]] = {}
    for name, claimed in (("kept", kept), ("other", other)):
        sha = run_token.digest(issue(ledger, claimed))
        calls[name] = [
            NewCall(f"{name}-{n}", sha, "g", "anthropic", MODEL, "messages", True, None, 9) for n in range(12)
        ]

    async def work(books: Books) -> None:
        async def reserve(call: NewCall) -> Run:
            run = await books.reserve(call)
            assert isinstance(run, Run)
            return run

        runs = {call.id: await reserve(call) for call in (*calls["kept"], calls["other"][0])}
        with ledger.engine.begin() as connection:
            connection.execute(
                text("SELECT 1 FROM steps WHERE id = :id FOR UPDATE"), {"id": kept.step.step_id}
            )
            waiting = [books.settle(runs[call.id], call.id, GOOD, PRESUMED) for call in calls["kept"]]
            await books.settle(runs["other-0"], "other-0", GOOD, PRESUMED)
            for call in calls["other"][1:]:
                await reserve(call)
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)

    within(ledger, work)
    assert ledger.rows("SELECT count(*) AS n FROM usage") == [{"n": 13}]
