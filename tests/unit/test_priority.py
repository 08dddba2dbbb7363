from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.errors import Refused
from orchestrator.core.priority import MOST_URGENT_FIRST, Priority, parse, raised

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("text", ["high", "HIGH", " High "])
def test_a_priority_is_understood_in_any_case(text: str) -> None:
    assert parse(text) is Priority.HIGH


def test_normal_means_medium() -> None:
    assert parse("normal") is Priority.MEDIUM


def test_another_word_is_refused_with_the_choice() -> None:
    with pytest.raises(
        Refused, match=r"must be one of critical, high, medium, low \(got 'urgent'\)"
    ) as caught:
        parse("urgent")
    assert caught.value.code == "invalid-priority"


@pytest.mark.parametrize(
    ("waited", "expected"),
    [
        (timedelta(minutes=59), Priority.LOW),
        (HOUR, Priority.MEDIUM),
        (2 * HOUR, Priority.HIGH),
        (3 * HOUR, Priority.CRITICAL),
        (90 * HOUR, Priority.CRITICAL),
    ],
)
def test_each_ageing_raises_by_one_up_to_critical(waited: timedelta, expected: Priority) -> None:
    assert raised(Priority.LOW, waited, HOUR) is expected


def test_nothing_is_raised_when_ageing_is_off_or_a_clock_ran_backwards() -> None:
    assert raised(Priority.LOW, 90 * HOUR, timedelta(0)) is Priority.LOW
    assert raised(Priority.LOW, -90 * HOUR, HOUR) is Priority.LOW


@given(st.sampled_from(Priority), st.timedeltas(), st.timedeltas(), st.timedeltas())
def test_waiting_longer_never_lowers(
    priority: Priority, one: timedelta, other: timedelta, ageing: timedelta
) -> None:
    short, long = sorted((one, other))
    place = MOST_URGENT_FIRST.index
    assert place(raised(priority, long, ageing)) <= place(raised(priority, short, ageing)) <= place(priority)
