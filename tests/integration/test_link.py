"""What an agent notes and prints on its way into the rows, also while the database is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from orchestrator.core.verdict import StopReason
from orchestrator.tasks.backlog import MOST_CHARACTERS
from orchestrator.tasks.link import StepLink
from tests.benchmarks.relay import Way
from tests.integration.api_server import wired
from tests.integration.ledger import Ledger

SECRET = "sk-ant-api03-thisIsWhatNobodyMayEverRead-0123456789"


@pytest.fixture
def way(ledger: Ledger) -> Iterator[Way]:
    made = Way(make_url(ledger.url).port or 5432)
    yield made
    made.end()


@pytest.fixture
def link(ledger: Ledger, way: Way, tmp_path: Path) -> Iterator[StepLink]:
    claimed = ledger.take(ledger.task("t")["work"])
    url = make_url(ledger.url).set(host="127.0.0.1", port=way.port).render_as_string(hide_password=False)
    wiring = wired(url, tmp_path)
    yield StepLink(wiring, claimed)
    wiring.engine.dispose()


def logged(ledger: Ledger, stream: str) -> str:
    found = ledger.rows("SELECT text FROM logs WHERE stream = :stream ORDER BY number", stream=stream)
    return "".join(row["text"] for row in found)


def noted(ledger: Ledger) -> list[int]:
    return [event["data"]["number"] for event in ledger.events() if event["name"] == "tool"]


def test_what_is_said_while_the_database_is_away_is_kept_up_to_a_bound_and_the_rest_is_told(
    ledger: Ledger, way: Way, link: StepLink
) -> None:
    way.close()
    link.note("tool", {"number": 1})
    link.log("stdout", "x" * (MOST_CHARACTERS + 10))
    link.note("tool", {"number": 2})
    way.open()
    assert link.flush()
    link.note("tool", {"number": 3})
    link.log("stdout", "and on")
    assert link.flush()
    assert noted(ledger) == [1, 3]
    said = logged(ledger, "system")
    assert said.startswith("… 1 note and ")
    assert said.endswith(" characters of output dropped while the database was away\n")
    assert said.count("dropped") == 1
    text = logged(ledger, "stdout")
    assert len(text) <= MOST_CHARACTERS + len("and on")
    assert text.endswith("xand on")
    ledger.assert_consistent()


def test_who_says_too_much_meanwhile_waits_unless_it_must_end(way: Way, link: StepLink) -> None:
    way.close()
    waits = 2
    began = time.monotonic()
    link.log("stdout", "x" * (MOST_CHARACTERS + 10))
    for number in range(1, waits):
        link.note("tool", {"number": number})
    assert time.monotonic() - began >= waits * 0.3
    link.stop.set(StopReason.CANCEL)
    began, waits = time.monotonic(), 100
    for number in range(waits):
        link.note("tool", {"number": number})
    assert time.monotonic() - began < waits * 0.3


def test_nothing_is_dropped_while_the_database_is_there(ledger: Ledger, link: StepLink) -> None:
    link.log("stdout", "x" * (MOST_CHARACTERS + 10))
    for number in range(2_500):
        link.note("tool", {"number": number})
    assert link.flush()
    assert noted(ledger) == list(range(2_500))
    assert len(logged(ledger, "stdout")) == MOST_CHARACTERS + 10
    assert logged(ledger, "system") == ""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, a line is young."""
    monkeypatch.setitem(StepLink.keep_up.__globals__, "_UNFINISHED_SECONDS", 3600.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("at", [1, 10, len(SECRET) - 1])
def test_a_secret_that_comes_in_two_pieces_is_found(ledger: Ledger, link: StepLink, at: int) -> None:
    link.log("stdout", f"key: {SECRET[:at]}")
    link.keep_up()
    link.log("stdout", f"{SECRET[at:]}\nand more")
    link.keep_up()
    assert logged(ledger, "stdout") == "key: [redacted]\n"
    link.flush()
    assert logged(ledger, "stdout") == "key: [redacted]\nand more"


@pytest.mark.usefixtures("patient")
def test_in_a_line_without_end_no_word_is_cut(ledger: Ledger, link: StepLink) -> None:
    link.log("stdout", '"x" ' * 10_000 + SECRET[:10])
    link.keep_up()
    assert logged(ledger, "stdout").endswith('"x" ')
    link.log("stdout", SECRET[10:])
    link.flush()
    assert logged(ledger, "stdout").endswith('"x" [redacted]')


def test_a_line_that_is_not_ended_for_long_is_shown_all_the_same(ledger: Ledger, link: StepLink) -> None:
    link.log("stdout", "Password: ")
    until = time.monotonic() + 20
    while not logged(ledger, "stdout") and time.monotonic() < until:
        link.keep_up()
    assert logged(ledger, "stdout") == "Password: "


def test_what_no_row_can_hold_keeps_nothing_else_back(ledger: Ledger, link: StepLink) -> None:
    link.note("odd", {"number": float("nan")})
    link.log("stdout", "a \ud800 \0 b\n")
    link.flush()
    link.log("stdout", "after\n")
    link.flush()
    assert logged(ledger, "stdout").endswith("after\n")
