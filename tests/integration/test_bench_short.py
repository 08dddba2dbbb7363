"""Short rounds of what `scripts/bench` measures: that it measures, not how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import (
    bench,
    gateway,
    growth,
    installation,
    latency,
    makespan,
    parked,
    parsing,
    recovery,
    throughput,
    turns,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "SYNCED", False)


def test_durable_and_bare_workflows_both_end_and_are_compared() -> None:
    found = throughput.measure(workflows=6, rounds=1)
    assert found.bare[0] > 0
    assert found.durable[0] > 0
    assert found.ratio == found.durable[0] / found.bare[0]


def test_a_claim_is_timed_after_a_submission_and_after_an_answer() -> None:
    found = latency.measure(requests=3)
    assert len(found.submitted) == len(found.answered) == 3
    assert latency.summary(found.submitted)["n"] == 3


def test_the_first_byte_is_timed_straight_and_through_the_gateway() -> None:
    found = gateway.measure(requests=3)
    assert len(found.direct) == len(found.through) == 3
    assert len(found.added) == 3


def test_a_plan_with_two_joins_is_started_by_its_canvas_and_never_by_the_sweep(tmp_path: Path) -> None:
    steps = [
        {"id": "a", "needs": [], "seconds": 1},
        {"id": "b", "needs": ["a"], "seconds": 2},
        {"id": "c", "needs": ["a"], "seconds": 1},
        {"id": "d", "needs": ["b", "c"], "seconds": 1},
    ]
    (tmp_path / "two.json").write_text(json.dumps({"name": "two", "steps": steps}))
    (found,) = makespan.measure(tmp_path, critical_path=2.0, rounds=1)
    assert found.dag.width == 2
    assert found.starts == {"canvas": 4}
    assert found.ratio >= 1


def test_a_step_is_timed_beside_few_and_beside_many_rows() -> None:
    found = growth.measure(few=14, many=140, rounds=1, workflows=2)
    assert found.few[0] > 0
    assert found.many[0] > 0


def test_a_killed_worker_s_step_goes_on_after_its_last_finished_turn() -> None:
    found = recovery.measure(deaths=1, at_defaults=0)
    assert {victim: len(deaths) for victim, deaths in found.test.items()} == dict.fromkeys(
        recovery.VICTIMS, 1
    )
    for death in found.all:
        assert death.asked_again == 0, death
        assert death.as_expected, death
        assert death.seconds > 0


def test_parked_tasks_hold_no_slot_and_go_on_after_all_workers_were_restarted_in_a_chord_too() -> None:
    found = parked.measure(tasks=12, others=6, members=4, alone=3)
    assert found.wrong == {}
    assert found.counts["parked"] == found.counts["completed"] == 12
    assert found.counts["body_runs"] == 1
    assert (len(found.slot_free), len(found.answered_alone), len(found.answered_at_once)) == (3, 3, 9)


def test_the_parser_is_timed_by_kind_of_text() -> None:
    found = parsing.measure(size=50_000, rounds=1)
    assert set(found.speeds) == set(parsing.TEXTS)
    assert all(speed > 0 for speed in found.speeds.values())


def test_random_texts_are_read_alike_in_random_pieces() -> None:
    assert parsing.fuzz(seconds=2, seed=3) > 0


def test_the_table_says_what_missed_its_bound() -> None:
    lines = [("fast", "1", "≤ 2", True), ("slow", "30", "≤ 2", False)]
    assert bench._table(lines) == "fast   1  ≤ 2\nslow  30  ≤ 2  MISSED"


def test_a_turn_is_timed_early_and_late_in_a_conversation() -> None:
    found = turns.measure(early=3, late=9, around=2, rounds=1)
    samples = [found.own_early, found.own_late, found.whole_early, found.whole_late]
    assert [len(sample) for sample in samples] == [5] * 4
    assert all(took > 0 for sample in samples for took in sample)
    assert found.growth > 0
