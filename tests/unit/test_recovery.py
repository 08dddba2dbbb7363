"""What an error means for a step."""

from __future__ import annotations

import errno
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.recovery import BACKOFF, ErrorClass, next_delay, of_os_error

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        (ErrorClass.NETWORK, [2, 4, 8, 16, None]),
        (ErrorClass.TIMEOUT, [2, 4, 8, 16, None]),
        (ErrorClass.RATE_LIMIT, [10, 20, None]),
        (ErrorClass.DEPENDENCY, [5, None]),
        (ErrorClass.RESOURCE, [30, None]),
        (ErrorClass.STORAGE, [30, 150, 750, 3600, None]),
        (ErrorClass.AGENT, [1, 2, None]),
        (ErrorClass.VALIDATION, [None]),
        (ErrorClass.AUTH, [None]),
    ],
)
def test_each_class_is_tried_as_often_and_as_late_as_the_table_says(
    error: ErrorClass, delays: list[int | None]
) -> None:
    found = [next_delay(error, attempt, 9) for attempt in range(1, len(delays) + 1)]
    assert found == [None if delay is None else delay * SECOND for delay in delays]


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (errno.ENOSPC, ErrorClass.STORAGE),
        (errno.EDQUOT, ErrorClass.STORAGE),
        (errno.EIO, ErrorClass.RESOURCE),
        (None, ErrorClass.RESOURCE),
    ],
)
def test_a_full_disk_is_given_more_time_than_a_broken_one(number: int | None, found: ErrorClass) -> None:
    assert of_os_error(OSError(number, "it is so") if number else OSError("so")) is found


def test_every_class_has_a_rule() -> None:
    assert set(BACKOFF) == set(ErrorClass)


@given(st.sampled_from(ErrorClass), st.integers(1, 20), st.integers(1, 9))
def test_no_step_has_more_attempts_than_its_limit(error: ErrorClass, attempt: int, most: int) -> None:
    if attempt >= most:
        assert next_delay(error, attempt, most) is None


@given(st.sampled_from(ErrorClass), st.integers(1, 20))
def test_no_delay_exceeds_the_cap_unless_a_server_asks_for_it(error: ErrorClass, attempt: int) -> None:
    delay = next_delay(error, attempt, 99)
    assert delay is None or delay <= BACKOFF[error].cap
    asked = next_delay(error, attempt, 99, retry_after=timedelta(hours=1))
    assert asked in {None, timedelta(hours=1)}


def test_a_server_that_asks_for_less_than_our_own_delay_gets_our_own() -> None:
    assert next_delay(ErrorClass.RATE_LIMIT, 1, 5, retry_after=SECOND) == 10 * SECOND
