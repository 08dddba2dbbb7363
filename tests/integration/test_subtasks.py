"""Tasks that an agent starts: each call once, waited for without a worker, and told to the parent once."""

from __future__ import annotations

import contextlib
import json
import random
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents.selection import misfit
from orchestrator.commands import intervene, subtask
from orchestrator.commands.publication import Started
from orchestrator.commands.subtask import Bounds, Call, NotStarted, subtask_id
from orchestrator.core.states import Status
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.db import bounds as time_bounds, journal, lineage, subtasks
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import FenceLost, Scope
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.transitions import Applied
from tests.integration.ledger import TENANT, Ledger, step
from tests.integration.repositories import git, repository
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker

WIDE = Bounds(depth=3, children=20, tree=100)
AGENTS = frozenset({"engine", "replay"})
MODELS = ("claude-haiku-4-5", "small-*", "odd[*]")


def asked(*calls: str, **more: Any) -> list[SubtaskRequest]:
    return [SubtaskRequest(call, f"Do {call}", **more) for call in calls]


def start(
    ledger: Ledger, claimed: Claimed, requests: Sequence[SubtaskRequest], bounds: Bounds = WIDE
) -> tuple[Started, ...]:
    call = Call(claimed.step, claimed.fence, claimed.conflicts, "f" * 40)
    return ledger.do(
        lambda connection: subtask.start(
            connection, call, requests, bounds=bounds, agent_types=AGENTS, models=MODELS
        )
    )


def park(ledger: Ledger, claimed: Claimed) -> Applied | None:
    return ledger.do(lambda connection: subtasks.park(connection, claimed.step, claimed.fence, {}))


def ids(started: Sequence[Started]) -> list[str]:
    return [each.task.task_id for each in started]


def parent_with(ledger: Ledger, *calls: str, **body: Any) -> tuple[Claimed, list[str]]:
    """A parked parent and its live subtasks."""
    claimed = ledger.take(ledger.task("p", **body)["work"])
    started = ids(start(ledger, claimed, asked(*calls)))
    assert park(ledger, claimed) is not None
    return claimed, started


def complete(ledger: Ledger, task_id: str) -> Applied:
    applied = ledger.succeed(ledger.take(ledger.steps(task_id)["work"]))
    assert applied is not None
    return applied


def wake(ledger: Ledger, task_id: str) -> StepRef | None:
    woken = ledger.do(lambda connection: subtasks.wake_parent(connection, TaskRef(TENANT, task_id)))
    return None if woken is None else woken.step


def ends(ledger: Ledger, claimed: Claimed) -> dict[str, SubtaskEnd | None]:
    return ledger.do(lambda connection: lineage.ends(connection, claimed.step, claimed.conflicts))


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


# --- a subtask that is run again ----------------------------------------------------------------------------


def finish_call(ledger: Ledger, claimed: Claimed, call: str) -> None:
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)

    def work(connection: Any) -> None:
        journal.begin_call(connection, scope, 1, call, "start_subtask", {})
        journal.finish_call(connection, scope, call, "told", False, None)

    ledger.do(work)


def test_a_subtask_that_is_retried_while_its_parent_waits_is_waited_for_again(ledger: Ledger) -> None:
    claimed, (one, two) = parent_with(ledger, "a", "b")
    ledger.fail(ledger.take(ledger.steps(one)["work"]))
    ledger.do(lambda c: intervene.retry(c, TENANT, one, by="me"))
    complete(ledger, two)
    assert wake(ledger, two) is None
    complete(ledger, one)
    assert wake(ledger, one) == claimed.step
    found = ends(ledger, claimed)["a"]
    assert found is not None
    assert found.status is Status.COMPLETED, "the run that counts is the latest"


def test_a_subtask_that_is_retried_before_its_parent_has_read_it_lives_again(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a")
    ledger.fail(ledger.take(ledger.steps(child)["work"]))
    assert wake(ledger, child)
    ledger.do(lambda c: intervene.retry(c, TENANT, child, by="me"))
    again = ledger.take(claimed.step)
    assert ends(ledger, again) == {"a": None}
    assert park(ledger, again) is not None
    assert ledger.step(claimed.step)["waiting_on"] == "subtask"
    complete(ledger, child)
    assert wake(ledger, child) == claimed.step


def test_a_subtask_that_is_retried_after_its_parent_was_told_stands_alone(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a")
    ledger.fail(ledger.take(ledger.steps(child)["work"]))
    wake(ledger, child)
    again = ledger.take(claimed.step)
    finish_call(ledger, again, "a")
    ledger.do(lambda c: intervene.retry(c, TENANT, child, by="me"))
    (later,) = ids(start(ledger, again, asked("b")))
    park(ledger, again)
    complete(ledger, later)
    assert wake(ledger, later) == claimed.step, "it doesn't wait for what it was told before"
    assert ledger.do(lineage.left_behind) == []
    ledger.succeed(ledger.take(claimed.step))
    assert ledger.do(lineage.left_behind) == []
    complete(ledger, child)
    assert wake(ledger, child) is None


# --- ends of a parent ---------------------------------------------------------------------------------------


def test_a_cancel_ends_what_is_below_in_the_same_transaction(ledger: Ledger) -> None:
    _, (one, two) = parent_with(ledger, "a", "b")
    running = ledger.take(ledger.steps(one)["work"])
    (deep,) = ids(start(ledger, running, asked("a")))
    done = ledger.do(lambda c: intervene.cancel(c, TENANT, "p", by="me", reason="enough"))
    assert "and 3 subtasks with it" in done.message
    assert {task: ledger.row(task)["status"] for task in ("p", two, deep)} == dict.fromkeys(
        ("p", two, deep), "cancelled"
    )
    assert ledger.row(one)["cancel_requested_at"] is not None, "it runs, and is told by its heartbeat"
    assert ledger.row(deep)["outcome"] == {"type": "cancelled", "reason": "enough"}
    assert ledger.row(deep)["finished_at"] < ledger.row("p")["finished_at"], "children first"
    assert {task.task_id for task in done.publish.awaited} == {two, deep}
    for task in ("p", one, two, deep):
        ledger.assert_consistent(task)


def test_after_a_cancel_nothing_below_is_started(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    ledger.do(lambda c: intervene.cancel(c, TENANT, "p", by="me"))
    with pytest.raises(NotStarted, match="about to end"):
        start(ledger, claimed, asked("a"))


def test_a_cancel_that_races_the_start_leaves_no_live_subtask(ledger: Ledger) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            claimed = ledger.take(ledger.task(f"p{number}")["work"])

            def begin(claimed: Claimed = claimed) -> None:
                with contextlib.suppress(NotStarted):
                    start(ledger, claimed, asked("a", "b"))

            def cancel(task_id: str = f"p{number}") -> None:
                ledger.do(lambda c: intervene.cancel(c, TENANT, task_id, by="me"))

            for job in [pool.submit(work) for work in random.Random(number).sample([begin, cancel], 2)]:
                job.result()
    assert ledger.rows("SELECT id FROM tasks WHERE parent_id IS NOT NULL AND finished_at IS NULL") == []


def test_a_pause_and_a_resume_take_the_subtasks_along(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    (one,) = ids(start(ledger, claimed, asked("a")))
    ledger.do(lambda c: intervene.pause(c, TENANT, "p", by="me"))
    assert ledger.row(one)["waiting_on"] == "paused"
    assert start(ledger, claimed, asked("b")) == (), "nothing is to be published yet"
    assert [
        row["waiting_on"] for row in ledger.rows("SELECT waiting_on FROM tasks WHERE parent_id = 'p'")
    ] == [
        "paused",
        "paused",
    ]
    park(ledger, claimed)
    done = ledger.do(lambda c: intervene.resume(c, TENANT, "p", by="me"))
    assert len(done.publish.released) == 2
    assert {row["status"] for row in ledger.rows("SELECT status FROM tasks WHERE parent_id = 'p'")} == {
        "queued"
    }
    for row in ledger.rows("SELECT id FROM tasks"):
        ledger.assert_consistent(row["id"])


def test_a_step_that_fails_for_good_forsakes_its_live_subtasks(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    one, two = ids(start(ledger, claimed, asked("a", "b")))
    complete(ledger, two)
    failed = ledger.fail(claimed)
    assert failed is not None
    assert [task.task_id for task in failed.settled.forsaken] == [one]
    assert [task.task_id for task in ledger.do(lineage.left_behind)] == [one], "if that shell dies now"
    ledger.do(lambda c: intervene.cancel(c, TENANT, one, by="orchestrator"))
    assert ledger.do(lineage.left_behind) == []


def test_a_parent_that_waits_past_its_time_fails_and_forsakes_them(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a", budget={"max_duration": "1h"})
    ledger.run("UPDATE tasks SET started_at = now() - interval '2 hours' WHERE id = 'p'")
    (late,) = ledger.do(lambda c: time_bounds.late_steps(c, timedelta(0)))
    ended = ledger.do(lambda c: time_bounds.end_late(c, late.step))
    assert ended is not None
    assert (late.step, [task.task_id for task in ended.settled.forsaken]) == (claimed.step, [child])


def test_of_two_steps_that_one_fails_ends_the_other_s_subtasks(ledger: Ledger) -> None:
    refs = ledger.task("p", step("a"), step("b"))
    waits, breaks = ledger.take(refs["a"]), ledger.take(refs["b"])
    (child,) = ids(start(ledger, waits, asked("a")))
    park(ledger, waits)
    failed = ledger.fail(breaks)
    assert failed is not None
    assert [task.task_id for task in failed.settled.forsaken] == [child]
    assert ledger.row("p")["status"] == "failed"


# --- in workers ---------------------------------------------------------------------------------------------


def objective(**spec: Any) -> str:
    return json.dumps(spec)


def delegate(*objectives: str, repo: Path | None = None, **body: Any) -> dict[str, Any]:
    where = {"repository": {"path": str(repo)}} if repo else {}
    spec = {"do": "delegate", "objectives": list(objectives)}
    steps = [{"id": "a", "description": "Delegate", "spec": spec}]
    return {"description": "Something", "steps": steps, **where, **body}


def write(path: str, text: str) -> str:
    return objective(do="write", path=path, text=text)


def children(stack: Stack, task_id: str = "p") -> list[str]:
    found = stack.ledger.rows(
        "SELECT id FROM tasks WHERE parent_id = :task ORDER BY parent_call_id", task=task_id
    )
    return [row["id"] for row in found]


def told(stack: Stack, name: str = "p.a") -> list[dict[str, Any]]:
    return [note for note in stack.notes.read("told") if note["step"] == name]


def shown(stack: Stack, task_id: str, path: str) -> str:
    """A file at the end of a task's branch."""
    (mirror,) = (stack.folder / "mirrors").glob("*.git")
    return git(mirror, "show", f"{stack.ledger.row(task_id)['tip_commit']}:{path}")


def test_what_subtasks_did_is_merged_into_their_parent_s_work(stack: Stack, tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"one.txt": "1\n", "two.txt": "2\n"})
    request = delegate(write("one.txt", "one\n"), write("two.txt", "two\n"), "Only look.", repo=source)
    stack.call(request, task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed", "one slot is enough: who waits holds none"
    assert [note["status"] for note in told(stack)] == ["completed"] * 3
    seen = stack.notes.read("saw")
    assert all("parent.txt" in note["files"] for note in seen), "they start from their parent's checkpoint"
    assert shown(stack, "p", "one.txt") == "one"
    assert shown(stack, "p", "two.txt") == "two"
    assert shown(stack, "p", "parent.txt") == "parent"
    (parent,) = stack.ledger.steps("p").values()
    assert stack.ledger.names(parent)[0:2] == ["claim", "wait"]
    assert stack.ledger.step(parent)["attempt"] == 1
    assert stack.ledger.step(parent)["published_by"] == "wake", "no sweep was needed"
    for task in ("p", *children(stack)):
        stack.ledger.assert_consistent(task)


def test_a_conflict_of_subtasks_is_shown_and_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"one.txt": "1\n"})
    stack.call(delegate(write("one.txt", "left\n"), write("one.txt", "right\n"), repo=source), task_id="p")
    with worker(stack):
        assert stack.ends("p") == "completed"
    first, second = told(stack)
    assert first["conflict"] is None
    assert "one.txt" in second["conflict"]
    assert "+right" in second["conflict"].replace(" ", "")
    assert shown(stack, "p", "one.txt") == "left"


def test_another_machine_carries_out_a_subtask_and_another_one_its_parent(
    stack: Stack, tmp_path: Path
) -> None:
    """They share the artifact store alone."""
    source = repository(tmp_path / "source", {"one.txt": "1\n"})
    store = {"ORCHESTRATOR_ARTIFACT_URL": (tmp_path / "store").as_uri()}
    (tmp_path / "store").mkdir()
    machines = []
    for name in "abc":
        folder = tmp_path / name
        folder.mkdir()
        machines.append(Stack(stack.database_url, stack.redis_url, folder, store))
    first, second, third = machines
    first.notes.hold(f"{FIRST}.work")
    second.notes.hold("p.a")
    first.call(delegate(write("one.txt", "one\n"), repo=source), task_id="p")
    with worker(first, slots=1):
        first.began(f"{FIRST}.work")
    assert first.ledger.row("p")["waiting_on"] == "subtask"
    with worker(second, slots=2):
        second.healed(lambda: second.ledger.row(FIRST)["finished_at"], "the subtask's end")
        second.began("p.a")
    with worker(third, slots=1):
        third.healed(lambda: third.ledger.row("p")["finished_at"], "the end")
    assert third.ledger.row("p")["status"] == "completed"
    assert shown(third, "p", "one.txt") == "one"
    assert not third.notes.read("saw"), "it was another machine's work"
    for machine in machines:
        machine.close()


def test_kill_9_between_the_start_and_the_park_starts_nothing_twice(stack: Stack) -> None:
    stack.notes.hold("p.a.delegated")
    stack.call(delegate("Look.", "Look again."), task_id="p")
    with worker(stack, slots=1) as process:
        until(lambda: stack.notes.read("delegated"), "the subtasks")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    stack.notes.let_go("p.a.delegated")
    with worker(stack, slots=2):
        stack.healed(lambda: stack.ledger.row("p")["finished_at"], "the end")
    assert stack.ledger.row("p")["status"] == "completed"
    assert len(children(stack)) == 2
    assert len(stack.notes.read("delegated")) == 1, "the second attempt found them started"
    assert [note["call"] for note in told(stack)] == ["call_1", "call_2"]
    (parent,) = stack.ledger.steps("p").values()
    assert stack.ledger.step(parent)["attempt"] == 2


FIRST = subtask_id(StepRef(TENANT, "p", "workflow_p_1", "workflow_p_1.1"), 0, "call_1")
"""The id of what step `a` of task `p` starts first."""


def test_a_parent_whose_waker_died_is_woken_by_one_of_two_sweeps(stack: Stack) -> None:
    """The subtask's end is committed as a worker would that dies before its next word."""
    stack.notes.hold(f"{FIRST}.work")
    stack.call(delegate("Look."), task_id="p")
    with worker(stack, slots=1) as process:
        stack.began(f"{FIRST}.work")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    (parent,) = stack.ledger.steps("p").values()
    (child,) = stack.ledger.steps(FIRST).values()
    assert stack.ledger.step(parent)["waiting_on"] == "subtask"
    stack.ledger.expire(child)
    complete(stack.ledger, FIRST)
    with ThreadPoolExecutor(2) as pool:

        def woken() -> int:
            return sum(swept.woken for swept in pool.map(lambda _: stack.sweep(), range(2)))

        assert until(woken, "the wake") == 1
        assert woken() == 0
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed"
    assert [note["call"] for note in told(stack)] == ["call_1"]
    assert stack.ledger.names(parent) == ["claim", "wait", "wake", "claim", "succeed"]


def test_a_cancelled_parent_s_running_subtask_stops(stack: Stack) -> None:
    stack.notes.hold(f"{FIRST}.work")
    stack.call(delegate("Look."), task_id="p")
    with worker(stack, slots=2):
        stack.began(f"{FIRST}.work")
        until(lambda: stack.ledger.row("p")["waiting_on"] == "subtask", "the park")
        stack.command(intervene.cancel, "p")
        assert stack.ends("p") == "cancelled"
        assert stack.ends(FIRST) == "cancelled"
    assert [note["reason"] for note in stack.notes.read("stopped")] == ["cancel"]


def test_a_parent_that_breaks_leaves_no_subtask_behind(stack: Stack) -> None:
    """It fails before it parks: the shell cancels them, no sweep is needed."""
    spec = {"do": "delegate and break", "objectives": [objective(do="work")]}
    stack.notes.hold(f"{FIRST}.work")
    stack.call({"description": "S", "steps": [{"id": "a", "description": "D", "spec": spec}]}, task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "failed"
        assert stack.ends(FIRST) == "cancelled"
    assert stack.ledger.row(FIRST)["outcome"]["reason"] == "the step that started it has ended"


# --- by the engine ------------------------------------------------------------------------------------------


def script(*calls: Any) -> str:
    return objective(do="script", calls=calls)


def writes(path: str, text: str) -> str:
    done = ("attempt_completion", {"summary": f"Wrote {path}."})
    return script(("write_file", {"path": path, "content": text}), done)


def engine_parent(*objectives: str) -> dict[str, Any]:
    calls = [
        ("write_file", {"path": "parent.txt", "content": "parent\n"}),
        [("start_subtask", {"objective": each}) for each in objectives],
        ("attempt_completion", {"summary": "All parts are there."}),
    ]
    step = {"id": "a", "description": "Delegate", "spec": {"do": "script", "calls": calls}}
    return {"description": "Something", "steps": [step]}


def results(stack: Stack, task_id: str = "p") -> list[str]:
    """What the parent's conversation says of its subtasks."""
    found = stack.ledger.rows(
        "SELECT c.result FROM tool_calls c JOIN steps s ON s.id = c.step_id"
        " WHERE s.task_id = :task AND c.name = 'start_subtask' ORDER BY c.number",
        task=task_id,
    )
    return [row["result"] for row in found]


def turns(stack: Stack, task_id: str) -> list[int]:
    return [note["turn"] for note in stack.notes.read("asked") if note["task"] == task_id]


def test_the_engine_hands_out_two_parts_and_goes_on_with_both(stack: Stack) -> None:
    stack.call(engine_parent(writes("one.txt", "one\n"), writes("two.txt", "two\n")), task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed"
    first, second = results(stack)
    assert first.startswith("completed. Its changes are in the workspace.")
    assert "Wrote one.txt." in first
    assert "Wrote two.txt." in second
    assert [shown(stack, "p", f"{name}.txt") for name in ("parent", "one", "two")] == ["parent", "one", "two"]
    assert turns(stack, "p") == [1, 2, 3], "the wait cost no request"
    told = """
        SELECT data ->> 'state' AS state FROM events
        WHERE task_id = 'p' AND data ->> 'name' = 'start_subtask' ORDER BY number
    """
    states = [row["state"] for row in stack.ledger.rows(told)]
    assert states == ["started", "started", "finished", "finished"], "each is told of once"
    for task in ("p", *children(stack)):
        stack.ledger.assert_consistent(task)


def test_a_failure_a_cancel_and_a_conflict_of_subtasks_reach_the_engine_as_words(stack: Stack) -> None:
    breaks, waits = objective(do="break"), objective(do="ask")
    clashes = [writes("same.txt", "left\n"), writes("same.txt", "right\n")]
    stack.call(engine_parent(breaks, waits, *clashes), task_id="p")
    with worker(stack):
        waiting = until(
            lambda: stack.ledger.rows("SELECT id FROM tasks WHERE waiting_on = 'question'"), "a question"
        )
        stack.command(intervene.cancel, waiting[0]["id"], reason="not this one")
        assert stack.ends("p") == "completed"
    broken, cancelled, left, right = results(stack)
    assert broken.startswith("failed. It changed no files.")
    assert "no-luck: It did not work." in broken
    assert cancelled.startswith("cancelled. It changed no files.")
    assert "not this one" in cancelled
    assert left.startswith("completed. Its changes are in the workspace.")
    assert "could not be merged" in right
    assert shown(stack, "p", "same.txt") == "left"
    errors = stack.ledger.rows("SELECT is_error FROM tool_calls WHERE name = 'start_subtask' ORDER BY number")
    assert [row["is_error"] for row in errors] == [True, True, False, True]


@pytest.mark.parametrize("turn", [2, 3])
def test_kill_9_of_a_parent_by_the_engine_starts_and_asks_nothing_twice(stack: Stack, turn: int) -> None:
    """Killed while it asks for the turn that starts them, or for the one that is told of their ends."""
    stack.notes.hold(f"p.{turn}")
    stack.call(engine_parent(writes("one.txt", "one\n"), writes("two.txt", "two\n")), task_id="p")
    with worker(stack, slots=2) as process:
        until(lambda: turn in turns(stack, "p"), f"turn {turn}")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    stack.notes.let_go(f"p.{turn}")
    with worker(stack, slots=2):
        stack.healed(lambda: stack.ledger.row("p")["finished_at"], "the end")
    assert stack.ledger.row("p")["status"] == "completed"
    assert turns(stack, "p") == sorted([1, 2, 3, turn])
    assert len(children(stack)) == 2
    for child in children(stack):
        assert turns(stack, child) == [1, 2]
    assert [shown(stack, "p", f"{name}.txt") for name in ("one", "two")] == ["one", "two"]
    stack.ledger.assert_consistent("p")


def test_what_the_limits_forbid_is_told_to_the_engine(stack: Stack) -> None:
    narrow = Stack(stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_MAX_SUBTASKS": "1"})
    narrow.call(engine_parent("Look.", "Look again."), task_id="p")
    with worker(narrow):
        assert narrow.ends("p") == "completed"
    first, second = results(narrow)
    assert first == second
    assert "a task may have 1 at most" in first
    assert children(narrow) == []
    narrow.close()
