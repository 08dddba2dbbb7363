"""`execute_task.delay()`: the producers' door, alone and in a user's own chain and chord."""

from __future__ import annotations

import base64
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import chain, chord
from celery.result import AsyncResult

from orchestrator.commands import answer, intervene
from orchestrator.core.errors import Conflict, Refused
from orchestrator.core.priority import Priority
from orchestrator.core.task_id import branch
from orchestrator.queues.canvas import sent_again
from orchestrator.queues.messages import finalize_label
from orchestrator.tasks import TaskCancelled, TaskFailed
from orchestrator.tasks.entry import TaskResult
from orchestrator.tasks.registry import Registered, register
from tests.integration.repositories import git, repository
from tests.integration.stack import PATIENCE_SECONDS, REPOSITORY, Stack, until, worker

BREAKS = {"description": "Break", "steps": [{"id": "a", "description": "Break", "spec": {"do": "break"}}]}
ASKS = {"description": "Ask", "steps": [{"id": "a", "description": "Ask", "spec": {"do": "ask"}}]}


@pytest.fixture(scope="module")
def served(shared_stack: Stack) -> Iterator[Stack]:
    """An installation with a worker."""
    with worker(shared_stack, slots=8):
        yield shared_stack


@pytest.fixture(scope="module")
def theirs(served: Stack) -> Iterator[ModuleType]:
    """The user's app in this process, and their own worker."""
    kept = dict(os.environ)
    os.environ.update(served.environment)
    for name in [name for name in sys.modules if name == "orchestrator.tasks"]:
        del sys.modules[name]
    try:
        module = importlib.import_module("tests.integration.users_app")
        with worker(served, slots=4, app="tests.integration.users_app", queues="theirs"):
            yield module
    finally:
        os.environ.clear()
        os.environ.update(kept)


def without_database(stack: Stack) -> Registered:
    """A producer's own registration, which writes no row."""
    return register(replace(stack.wiring, database_url=None))


def get(result: Any) -> Any:
    return result.get(timeout=PATIENCE_SECONDS, interval=0.05)


def state(result: AsyncResult[Any], wanted: str) -> None:
    """Celery's own word; a result may be thrown to the caller a moment before it is stored."""
    until(lambda: result.state == wanted, f"{wanted}, not {result.state}")


def test_a_call_returns_the_task_s_result(served: Stack) -> None:
    result = served.registered.execute_task.delay("Say hello")
    found = get(result)
    assert found["task_id"] == result.id
    assert found["status"] == "completed"
    assert [one["key"] for one in found["steps"]] == ["work"]
    assert (result.state, result.status) == ("SUCCESS", "completed")
    assert served.ledger.row(result.id)["created_by"] == "celery"
    served.ledger.assert_consistent(result.id)


def test_a_call_of_a_task_that_fails_raises_it(served: Stack) -> None:
    result = served.call(BREAKS)
    with pytest.raises(TaskFailed) as found:
        get(result)
    assert found.value.code == "no-luck"
    assert result.id in found.value.reason, "what Flower shows is where to look, not what the agent said"
    assert (result.state, result.status) == ("FAILURE", "failed")


def test_a_call_of_a_task_that_is_cancelled_raises_it(served: Stack) -> None:
    result = served.call(ASKS)
    until(lambda: result.state == "pending_input", "the question")
    served.command(intervene.cancel, result.id, reason="enough")
    with pytest.raises(TaskCancelled) as found:
        get(result)
    assert found.value.reason == "enough"
    assert (result.state, result.status) == ("REVOKED", "cancelled")


def test_a_result_shows_the_six_names_while_its_task_lives(served: Stack) -> None:
    served.notes.hold("living.a")
    result = served.call(ASKS, task_id="living")
    assert TaskResult("nobody-took-it", app=result.app).status == "queued"
    until(lambda: result.state == "running", "running")
    assert result.status == "running"
    served.notes.let_go("living.a")
    until(lambda: result.state == "pending_input", "the question")
    assert result.status == "pending_input"
    served.command(answer.answer, "living", "left")
    assert get(result)["steps"][0]["status"] == "completed"
    assert result.status == "completed"
    assert served.ledger.rows("SELECT result FROM steps WHERE task_id = 'living'") == [
        {"result": {"answer": "left"}}
    ]


def test_a_chain_of_the_user_s_goes_on_with_the_result(served: Stack, theirs: ModuleType) -> None:
    canvas = chain(
        theirs.before.s("context"),
        theirs.execute_task.s("Work with it"),
        theirs.after.s().set(queue="theirs"),
    )
    result = canvas.apply_async()
    found = get(result)
    assert found["status"] == "completed"
    assert result.parent.id == found["task_id"]
    assert served.ledger.row(found["task_id"])["previous"] == "context"
    assert served.began(f"{found['task_id']}.work")["context"]["previous"] == "context"


def test_a_chain_of_the_user_s_ends_where_the_task_fails(theirs: ModuleType) -> None:
    before = theirs.notes.get("after")
    result = chain(theirs.execute_task.s(BREAKS), theirs.after.s().set(queue="theirs")).apply_async()
    with pytest.raises(TaskFailed):
        get(result.parent)
    state(result.parent, "FAILURE")
    state(result, "FAILURE")
    assert theirs.notes.get("after") == before


def test_errbacks_of_the_user_s_hear_a_failure_that_says_no_place(served: Stack, theirs: ModuleType) -> None:
    """Alone, as a chain's link and as a chord's member; what the caller raises has its own traceback."""
    errback = theirs.broke.s().set(queue="theirs")
    alone = theirs.execute_task.s(BREAKS).on_error(errback).apply_async()
    linked = chain(theirs.execute_task.s(BREAKS), theirs.after.s().set(queue="theirs"))
    body = theirs.gathered.s().set(queue="theirs").on_error(errback)
    gathering = chord([theirs.execute_task.s(BREAKS)], body)
    results = [alone, linked.on_error(errback).apply_async(), gathering.apply_async()]
    for result in results:
        with pytest.raises(TaskFailed) as failed:
            get(result)
        assert "get(result)" in str(failed.traceback[0].statement), "the reader's own place is shown"
    for result in (alone, results[1].parent):
        state(result, "FAILURE")
        assert "no-luck" in result.traceback
        assert ".py" not in result.traceback
    heard = until(lambda: len(found := theirs.notes.lrange("broke", 0, -1)) >= 3 and found, "the errbacks")
    assert {alone.id, results[1].parent.id, results[2].id} <= {name.decode() for name in heard}
    (step,) = served.ledger.steps(alone.id).values()
    own = AsyncResult(step.step_id, app=served.registered.app)
    state(own, "FAILURE")
    assert "no-luck" in own.traceback
    assert ".py" not in own.traceback


def test_a_chord_of_the_user_s_gathers_tasks(theirs: ModuleType) -> None:
    header = [theirs.execute_task.s(f"Part {number}") for number in range(3)]
    result = chord(
        [*header, theirs.before.s("theirs")], theirs.gathered.s().set(queue="theirs")
    ).apply_async()
    found = get(result)
    assert len(found) == 4
    assert found[3] == "theirs"


def test_a_task_may_be_the_body_of_the_user_s_chord(served: Stack, theirs: ModuleType) -> None:
    result = chord([theirs.before.s("a"), theirs.before.s("b")], theirs.execute_task.s("Join")).apply_async()
    found = get(result)
    assert served.ledger.row(found["task_id"])["previous"] == ["a", "b"]


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_a_chord_of_the_user_s_hears_that_a_member(served: Stack, theirs: ModuleType, end: str) -> None:
    gathered = int(theirs.notes.get("gathered") or 0)
    member = theirs.execute_task.s(BREAKS if end == "fails" else ASKS)
    header = [member, theirs.execute_task.s("Fine")]
    result = chord(header, theirs.gathered.s().set(queue="theirs")).apply_async()
    if end == "is cancelled":
        task_id = result.parent.results[0].id
        until(lambda: served.ledger.row(task_id)["status"] == "pending_input", "the question")
        served.command(intervene.cancel, task_id, reason="enough")
    with pytest.raises(TaskFailed if end == "fails" else TaskCancelled):
        get(result)
    state(result, "FAILURE")
    assert int(theirs.notes.get("gathered") or 0) == gathered


def test_fifty_messages_make_one_task_and_run_what_follows_once(served: Stack, theirs: ModuleType) -> None:
    before = int(theirs.notes.get("after") or 0)
    served.notes.hold("fifty.work")
    canvas = chain(theirs.execute_task.s("Once").set(task_id="fifty"), theirs.after.s().set(queue="theirs"))
    result = canvas.apply_async()
    served.began("fifty.work")
    wiring = served.wiring
    stored = served.ledger.row("fifty")["entry_signature"]
    destination = wiring.topology.destination(Priority.MEDIUM)

    def send(times: int) -> None:
        for _ in range(times):
            sent_again(wiring.app, stored, destination, finalize_label("fifty")).apply_async()

    send(25)
    served.notes.let_go("fifty.work")
    send(25)
    assert get(result)["task_id"] == "fifty"
    send(1)
    marker = get(theirs.before.s("behind them").apply_async())
    assert marker == "behind them"
    until(lambda: served.redis.llen(destination.queue.value) == 0, "an empty queue")
    assert int(theirs.notes.get("after")) == before + 1
    assert served.ledger.rows("SELECT count(*) AS n FROM tasks WHERE id = 'fifty'") == [{"n": 1}]
    assert len(served.ledger.rows("SELECT 1 FROM attempts WHERE step_id LIKE 'workflow_fifty%'")) == 1


def test_a_broker_that_is_away_or_emptied_right_after_the_call_loses_nothing(stack: Stack) -> None:
    nobody = stack.redis_url.replace(stack.redis_url.rpartition("@")[2], "127.0.0.1:9/0")
    away = replace(stack, redis_url=nobody)
    assert away.call("Wait for the broker", task_id="patient").id == "patient"
    away.close()
    survivor = stack.call("Survive", task_id="survivor")
    stack.redis.flushdb()
    with worker(stack):
        for task_id in ("survivor", "patient"):
            stack.healed(lambda t=task_id: stack.ledger.row(t)["finished_at"], "the end")  # type: ignore[misc]
        assert get(survivor)["status"] == "completed"
        assert get(TaskResult("patient", app=stack.wiring.app))["status"] == "completed"
    assert not [note for note in stack.notes.read("began") if note["fence"] > 1], "each ran once"


def test_a_producer_needs_no_database(served: Stack) -> None:
    environment = {**os.environ, **served.environment, "PYTHONPATH": str(REPOSITORY)}
    del environment["ORCHESTRATOR_DATABASE_URL"]
    program = (
        "from orchestrator.tasks import execute_task\n"
        "r = execute_task.delay({'description': 'Without one', 'labels': {'a': 'b'}})\n"
        "print(r.id)"
    )
    sent = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    task_id = sent.stdout.strip()
    assert get(TaskResult(task_id, app=served.wiring.app))["status"] == "completed"
    assert served.ledger.row(task_id)["labels"] == {"a": "b"}


def test_importing_the_tasks_loads_no_model_and_no_web_framework_and_warns_of_nothing(stack: Stack) -> None:
    program = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from orchestrator.tasks import app, execute_task\n"
        "from orchestrator.tasks.registry import register\n"
        "from orchestrator import bootstrap\n"
        "second = register(bootstrap.load('second'))\n"
        "app.finalize(); second.app.finalize()\n"
        "from celery import Celery\n"
        "theirs = Celery('theirs'); theirs.finalize()\n"
        "assert execute_task.name in theirs.tasks\n"
        "assert second.app.tasks[execute_task.name].wiring is second.execute_task.wiring\n"
        "assert second.execute_task.wiring is not execute_task.wiring\n"
        "heavy = {'anthropic', 'fastapi', 'starlette', 'uvicorn', 'obstore'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_an_app_that_was_finished_before_the_import_knows_the_task_too(stack: Stack) -> None:
    program = (
        "from celery import Celery\n"
        "theirs = Celery('theirs'); theirs.finalize()\n"
        "from orchestrator.tasks import execute_task\n"
        "assert execute_task.name in theirs.tasks\n"
    )
    environment = {**os.environ, **stack.environment}
    subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, check=True)


def test_a_bad_request_is_refused_before_anything_is_written(stack: Stack) -> None:
    with pytest.raises(Refused, match="unknown field 'prioritty'"):
        stack.call({"description": "Something", "prioritty": "high"})
    with pytest.raises(Refused, match="one request, not 3"):
        stack.registered.execute_task.delay("a", "b", "c")
    with pytest.raises(Refused, match="id of the call"):
        stack.call({"id": "mine", "description": "Something"})
    for unusable in ("x y/../z", "a\nb", "é" * 40, "x" * 81, "-x", "", 7):
        with pytest.raises(Refused, match="letters, digits") as found:
            stack.call("Something", task_id=unusable or " ")
        assert (found.value.code, found.value.problems[0].pointer) == ("request-invalid", "/id")
    with pytest.raises(Refused, match="U\\+0007"):
        stack.call({"description": "x", "steps": [{"id": "a", "description": "A", "spec": {"x": "\a"}}]})
    for code, large in (("body-too-large", "x" * 1_048_577), ("request-malformed", "\ud800")):
        with pytest.raises(Refused) as found:
            stack.call({"description": "x", "x_blob": large})
        assert found.value.code == code
    assert stack.ledger.rows("SELECT 1 FROM tasks") == []
    assert stack.redis.dbsize() == 0


def test_a_producer_without_a_database_is_refused_the_same_before_it_sends(stack: Stack) -> None:
    execute_task = without_database(stack).execute_task
    with pytest.raises(Refused, match="letters, digits"):
        execute_task.apply_async(("Something",), task_id="x y")
    with pytest.raises(Refused, match="id of the call"):
        execute_task.delay({"id": "mine", "description": "Something"})
    with pytest.raises(Refused, match=r"^The body is longer than 1048576 bytes\."):
        execute_task.delay("x" * 1_048_577)
    assert stack.redis.dbsize() == 0


def test_a_result_that_is_handed_on_has_the_limits_of_a_request(stack: Stack) -> None:
    execute_task = stack.registered.execute_task
    for code, large in (("body-too-large", "x" * 1_048_577), ("request-malformed", float("nan"))):
        with pytest.raises(Refused, match="What the task before returned") as found:
            execute_task.apply_async(({"found": large}, "Go on"))
        assert found.value.code == code
    assert stack.ledger.rows("SELECT 1 FROM tasks") == []
    execute_task.apply_async(({"found\0": "\x1b[31mred\ud800"}, "Go on"), task_id="coloured")
    assert stack.ledger.row("coloured")["previous"] == {"found\ufffd": "\ufffd[31mred?"}


def test_every_id_that_is_accepted_ends_on_a_branch_of_its_own(stack: Stack, tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    ids = ["seed:1", "a..b", "x.lock", "end.", "x" * 79 + ":"]
    asked = {
        "description": "Write",
        "repository": {"path": str(source), "push": True},
        "steps": [{"id": "a", "description": "Write", "spec": {"do": "script"}}],
    }
    with worker(stack):
        for task_id in ids:
            stack.call(asked, task_id=task_id)
        for task_id in ids:
            assert stack.ends(task_id) == "completed"
    for task_id in ids:
        row = stack.ledger.row(task_id)
        assert row["result"]["branch"] == branch(task_id)
        assert git(source, "rev-parse", row["result"]["branch"]) == row["tip_commit"]
        assert [one for one in stack.wiring.workspaces.mirrors.built() if one.task_id == task_id]


def test_private_addresses_are_accepted_where_a_setting_allows_them(stack: Stack) -> None:
    asked = {"description": "x", "repository": {"url": "https://10.0.0.5/team/repo.git"}}
    with pytest.raises(Refused, match="private"):
        stack.call(asked)
    more = {"ORCHESTRATOR_ALLOW_PRIVATE_ADDRESSES": "true"}
    open_one = Stack(stack.database_url, stack.redis_url, stack.folder, more)
    open_one.call(asked, task_id="inside")
    assert stack.ledger.row("inside")["repository_url"] == "https://10.0.0.5/team/repo.git"
    open_one.close()


def test_a_request_that_was_changed_on_its_way_makes_no_task(stack: Stack) -> None:
    execute_task = without_database(stack).execute_task
    honest, evil = '"description": "Honest"', '"description": "Evil"'
    for task_id in ("victim", "honest"):
        execute_task.apply_async(({"found": "it"}, {"description": "Honest"}), task_id=task_id)
    queue = stack.wiring.topology.destination(Priority.MEDIUM).queue.value
    first, second = stack.redis.lrange(queue, 0, -1)
    assert b"Honest" not in first + second, "it is base64: the test changes what it means to"
    for message in (first, second):
        envelope = json.loads(message)
        args, kwargs, embedded = json.loads(base64.b64decode(envelope["body"]))
        if kwargs["task_id"] == "honest":
            continue
        changes = [
            {"body": kwargs["body"].replace(honest, evil)},
            {"body": kwargs["body"].replace('"it"', '"something else"')},
            {"body": kwargs["body"], "task_id": "another"},
        ]
        stack.redis.lrem(queue, 1, message)
        for change in changes:
            assert {**kwargs, **change} != kwargs
            text = json.dumps([args, {**kwargs, **change}, embedded])
            envelope["body"] = base64.b64encode(text.encode()).decode()
            stack.redis.rpush(queue, json.dumps(envelope))
    with worker(stack) as process:
        assert get(TaskResult("honest", app=stack.wiring.app))["status"] == "completed"
        until(lambda: process.text().count("message_refused") == 3, "three refusals")
    assert [row["id"] for row in stack.ledger.rows("SELECT id FROM tasks")] == ["honest"]
    assert stack.ledger.row("honest")["previous"] == {"found": "it"}


def test_requirements_are_given_to_the_agent_of_every_step(served: Stack) -> None:
    served.call({"description": "Something", "requirements": ["secure", "tested"]}, task_id="required")
    assert served.ends("required") == "completed"
    assert served.began("required.work")["context"]["requirements"] == ["secure", "tested"]


def test_an_id_that_another_request_has_is_refused(stack: Stack) -> None:
    stack.call("One thing", task_id="same")
    stack.call("One thing", task_id="same")
    with pytest.raises(Conflict, match="another request"):
        stack.call("Another thing", task_id="same")
    assert len(stack.ledger.rows("SELECT 1 FROM tasks")) == 1


def test_messages_carry_ids_and_no_payload(stack: Stack) -> None:
    stack.call({"description": "a secret plan", "steps": BREAKS["steps"]}, task_id="quiet")
    for key in stack.redis.scan_iter("orchestrator.*"):
        for message in stack.redis.lrange(key, 0, -1):
            body = json.loads(message)
            assert b"secret plan" not in message
            assert body["headers"]["kwargsrepr"] == "{}"
            assert "quiet" in body["headers"]["argsrepr"]
