"""Tasks that an agent starts: each call once, waited for without a worker, and told to the parent once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from orchestrator.agents.selection import misfit
from orchestrator.commands import intervene, subtask
from orchestrator.commands.subtask import Bounds, Call, NotStarted
from orchestrator.core.states import Status
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.db import subtasks
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import FenceLost
from tests.integration.ledger import TENANT, Ledger
from tests.integration.subtask_rows import (
    WIDE,
    asked,
    complete,
    ends,
    ids,
    parent_with,
    park,
    start,
    wake,
)

# --- starting -----------------------------------------------------------------------------------------------


def test_each_call_starts_one_subtask_however_often_it_comes(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    first = ids(start(ledger, claimed, asked("a", "b")))
    assert start(ledger, claimed, asked("a", "b")) == ()
    (third,) = ids(start(ledger, claimed, asked("b", "c")))
    assert ledger.rows("SELECT count(*) AS n FROM tasks WHERE parent_id = 'p'") == [{"n": 3}]
    assert len({*first, third}) == 3


def test_a_zombie_starts_nothing(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    ledger.expire(claimed.step)
    with pytest.raises(FenceLost):
        start(ledger, claimed, asked("a"))
    again = ledger.take(claimed.step)
    with pytest.raises(FenceLost):
        start(ledger, claimed, asked("a"))
    assert start(ledger, again, asked("a"))


def test_after_a_lost_worker_the_next_attempt_finds_the_subtasks_of_the_first(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    first = ids(start(ledger, claimed, asked("a")))
    ledger.expire(claimed.step)
    again = ledger.take(claimed.step)
    assert again.attempt == 2
    assert ends(ledger, again) == {"a": None}
    assert start(ledger, again, asked("a")) == ()
    complete(ledger, first[0])
    found = ends(ledger, again)["a"]
    assert found is not None
    assert (found.task_id, found.status, found.summary) == (first[0], Status.COMPLETED, "done")


def test_a_subtask_inherits_what_its_parent_was_asked_with(ledger: Ledger) -> None:
    body = {
        "priority": "high",
        "repository": {"url": "https://example.com/a.git", "branch": "main", "push": True},
        "agent": {"type": "replay"},
        "model": "a-model",
        "budget": {"max_cost_usd": "3.5", "max_duration": "1h"},
    }
    refs = ledger.task("p", **body)
    ledger.run("UPDATE tasks SET base_commit = 'base', account = 'team'")
    claimed = ledger.take(refs["work"])
    (child,) = ids(start(ledger, claimed, asked("a")))
    row, parent = ledger.row(child), ledger.row("p")
    for name in ("priority", "repository_url", "repository_branch", "agent_type", "model", "created_by"):
        assert row[name] == parent[name], name
    assert (row["account"], row["root_id"], row["parent_id"], row["depth"]) == ("team", "p", "p", 1)
    assert (row["base_commit"], row["origin_commit"]) == ("f" * 40, "base")
    assert (row["push"], row["budget"]) == (False, {}), "one budget, the root's, is for all"
    assert "push" not in row["request"]["repository"]
    assert row["deadline"] == parent["started_at"] + timedelta(hours=1)
    assert list(ledger.steps(child)) == ["work"]
    (other,) = ids(start(ledger, claimed, asked("b", agent_type="engine", model="claude-haiku-4-5")))
    assert (ledger.row(other)["agent_type"], ledger.row(other)["model"]) == ("engine", "claude-haiku-4-5")
    start(ledger, claimed, [*asked("c", model="small-2"), *asked("d", model="odd*")])
    ledger.assert_consistent(child)
    ledger.assert_consistent("p")


def test_a_subtask_whose_agent_never_uses_its_model_is_not_started(ledger: Ledger) -> None:
    """It would wait for ever, and its parent with it."""
    claimed = ledger.take(ledger.task("p", model="claude-haiku-4-5")["work"])
    call = Call(claimed.step, claimed.fence, 0, None)

    def begin(agent_type: str) -> object:
        request = SubtaskRequest("a", "Do a", agent_type=agent_type)
        kinds = frozenset({"codex", "goose"})
        return ledger.do(
            lambda connection: subtask.start(
                connection, call, [request], bounds=WIDE, agent_types=kinds, models=frozenset(), misfit=misfit
            )
        )

    with pytest.raises(NotStarted, match=r"codex can't do it: it doesn't speak to anthropic.* goose"):
        begin("codex")
    assert begin("goose")


def test_depth_and_number_are_limited_with_words_for_the_agent(ledger: Ledger) -> None:
    deep = Bounds(depth=2, children=2, tree=4)
    claimed = ledger.take(ledger.task("p")["work"])
    one, two = ids(start(ledger, claimed, asked("a", "b"), deep))
    with pytest.raises(NotStarted, match=r"2 subtasks were started and 1 more .* 2 at most"):
        start(ledger, claimed, asked("c"), deep)
    below = ledger.take(ledger.steps(one)["work"])
    (grandchild, _) = ids(start(ledger, below, asked("a", "b"), deep))
    with pytest.raises(NotStarted, match="4, 1 more were asked for, and 4 are the most"):
        start(ledger, ledger.take(ledger.steps(two)["work"]), asked("a"), deep)
    with pytest.raises(NotStarted, match="2 levels deep"):
        start(ledger, ledger.take(ledger.steps(grandchild)["work"]), asked("a"), deep)
    with pytest.raises(NotStarted, match="can't have the model 'dear'; there are claude-haiku-4-5"):
        start(ledger, below, asked("x", model="dear"))
    for pattern in ("*", "claude-haiku-*", "odd1", "CLAUDE-HAIKU-4-5"):
        with pytest.raises(NotStarted, match="can't have the model"):
            start(ledger, below, asked("x", model=pattern))
    with pytest.raises(NotStarted, match="can't have the agent 'genie'; there are engine, replay"):
        start(ledger, below, asked("z", agent_type="genie"))
    assert ledger.rows("SELECT count(*) AS n FROM tasks") == [{"n": 5}]


def test_all_of_a_turn_start_or_none(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    with pytest.raises(NotStarted):
        start(ledger, claimed, [*asked("a"), *asked("b", agent_type="genie")])
    assert ledger.rows("SELECT count(*) AS n FROM tasks") == [{"n": 1}]


def test_branches_of_a_tree_that_grow_at_once_never_overgrow_it(ledger: Ledger) -> None:
    narrow = Bounds(depth=3, children=20, tree=8)
    claimed = ledger.take(ledger.task("p")["work"])
    children = ids(start(ledger, claimed, asked("a", "b", "c", "d"), narrow))
    below = [ledger.take(ledger.steps(child)["work"]) for child in children]

    def grow(mine: Claimed) -> int:
        try:
            return len(start(ledger, mine, asked("a", "b", "c"), narrow))
        except NotStarted:
            return 0

    with ThreadPoolExecutor(4) as pool:
        grown = sum(pool.map(grow, below))
    assert grown == 3
    assert ledger.rows("SELECT count(*) AS n FROM tasks WHERE parent_id IS NOT NULL") == [{"n": 7}]


def test_a_retry_of_the_root_may_grow_a_tree_again(ledger: Ledger) -> None:
    narrow = Bounds(depth=3, children=2, tree=2)
    claimed = ledger.take(ledger.task("p")["work"])
    for child in ids(start(ledger, claimed, asked("a", "b"), narrow)):
        complete(ledger, child)
    ledger.fail(claimed)
    ledger.do(lambda c: intervene.retry(c, TENANT, "p", by="me"))
    again = ledger.take(ledger.steps("p")["work"])
    assert ends(ledger, again) == {}
    assert len(start(ledger, again, asked("a", "b"), narrow)) == 2


# --- waiting and waking -------------------------------------------------------------------------------------


def test_a_parked_parent_holds_no_lease_and_goes_on_once_when_all_have_ended(ledger: Ledger) -> None:
    claimed, (one, two) = parent_with(ledger, "a", "b")
    row = ledger.step(claimed.step)
    assert (row["status"], row["waiting_on"], row["lease_until"]) == ("running", "subtask", None)
    assert ledger.row("p")["waiting_on"] == "subtask"
    assert complete(ledger, one).settled.of_parent
    assert wake(ledger, one) is None, "the other one lives"
    ledger.fail(ledger.take(ledger.steps(two)["work"]))
    assert wake(ledger, two) == claimed.step
    assert wake(ledger, two) is None
    assert wake(ledger, one) is None
    again = ledger.take(claimed.step)
    assert (again.attempt, again.resumed) == (1, True)
    found = ends(ledger, again)
    assert {call: end and (end.status, end.summary) for call, end in found.items()} == {
        "a": (Status.COMPLETED, "done"),
        "b": (Status.FAILED, "no-luck: It did not work."),
    }
    assert ledger.names(claimed.step) == ["claim", "wait", "wake", "claim"]
    ledger.assert_consistent("p")


def test_subtasks_that_ended_before_the_park_are_not_missed(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    (child,) = ids(start(ledger, claimed, asked("a")))
    complete(ledger, child)
    assert wake(ledger, child) is None, "it doesn't wait yet"
    applied = park(ledger, claimed)
    assert applied is not None
    assert (applied.instead, applied.released) == (Status.QUEUED, (claimed.step.step_id,))
    assert ledger.take(claimed.step).attempt == 1
    assert ledger.names(claimed.step) == ["claim", "yield", "claim"]


def test_an_end_that_races_the_park_is_never_lost(ledger: Ledger) -> None:
    """Both orders come about; after either, the parent is queued, once."""
    orders = set()
    with ThreadPoolExecutor(2) as pool:
        for number in range(25):
            claimed = ledger.take(ledger.task(f"p{number}")["work"])
            (child,) = ids(start(ledger, claimed, asked("a")))
            taken = ledger.take(ledger.steps(child)["work"])

            def end(taken: Claimed = taken, child: str = child) -> None:
                assert ledger.succeed(taken)
                wake(ledger, child)

            jobs = [lambda mine=claimed: park(ledger, mine), end]
            random.Random(number).shuffle(jobs)
            for job in [pool.submit(each) for each in jobs]:
                job.result()
            names = ledger.names(claimed.step)
            orders.add(tuple(names))
            assert names in (["claim", "wait", "wake"], ["claim", "yield"]), names
            assert ledger.step(claimed.step)["status"] == "queued"
            ledger.assert_consistent(f"p{number}")
    assert orders


def test_several_who_wake_at_once_wake_once(ledger: Ledger) -> None:
    claimed, children = parent_with(ledger, *"abcdef")
    taken = [ledger.take(ledger.steps(child)["work"]) for child in children]

    def end(mine: Claimed) -> bool:
        assert ledger.succeed(mine)
        return wake(ledger, mine.step.task_id) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(end, taken)) == 1
    assert ledger.names(claimed.step) == ["claim", "wait", "wake"]


def test_the_sweep_finds_a_parent_that_nobody_woke(ledger: Ledger) -> None:
    claimed, (child, other) = parent_with(ledger, "a", "b")

    def forgotten() -> list[str]:
        return [due.step.step_id for due in ledger.do(lambda c: subtasks.forgotten(c, timedelta(0)))]

    complete(ledger, child)
    assert forgotten() == []
    complete(ledger, other)
    assert forgotten() == [claimed.step.step_id]
    assert ledger.do(lambda c: subtasks.forgotten(c, timedelta(minutes=1))) == []
    with ThreadPoolExecutor(2) as pool:
        sweeps = [lambda c: subtasks.wake_waiting(c, claimed.step)] * 2
        woken = list(pool.map(ledger.do, sweeps))
    assert sum(one is not None for one in woken) == 1
    assert forgotten() == []


def test_a_paused_parent_is_woken_into_its_pause(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a")
    ledger.run("UPDATE tasks SET paused_at = now() WHERE id = 'p'")
    complete(ledger, child)
    assert wake(ledger, child) == claimed.step
    assert ledger.step(claimed.step)["waiting_on"] == "paused"
    ledger.assert_consistent("p")
