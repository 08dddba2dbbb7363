"""The Celery shells on a real RabbitMQ, with results in Redis: what the other tests show on Redis alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from orchestrator.commands import answer, intervene
from orchestrator.config import Settings
from orchestrator.local.doctor import Finding, Level, rabbitmq
from tests.integration.orders import SCRIPT, asked, child_at, plan
from tests.integration.rabbitmq import Node
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker


@pytest.fixture
def on_rabbitmq(migrated_url: str, redis_url: str, rabbitmq_url: str, tmp_path: Path) -> Iterator[Stack]:
    found = Stack(migrated_url, rabbitmq_url, tmp_path, {"ORCHESTRATOR_RESULT_URL": redis_url})
    with found.wiring.app.connection_for_write() as connection:
        for queue in found.wiring.app.amqp.queues.values():
            bound = queue(connection.default_channel)
            bound.declare()
            bound.purge()
    yield found
    found.ledger.engine.dispose()
    found.wiring.engine.dispose()
    found.wiring.app.close()


def test_a_parked_step_is_answered_and_its_chord_goes_on(on_rabbitmq: Stack) -> None:
    stack = on_rabbitmq
    request = plan({"id": "a", "spec": {"do": "ask"}}, {"id": "b"}, {"id": "c", "needs": ["a", "b"]})
    with worker(stack, slots=2):
        result = stack.call(request, task_id="t")
        until(lambda: stack.ledger.rows("SELECT 1 FROM questions"), "the question")
        stack.command(answer.answer, "t", {"choice": 1})
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
        assert stack.sweep().quiet
    steps = stack.ledger.steps("t")
    assert stack.ledger.step(steps["c"])["published_by"] == "canvas", "the chord went on by itself"
    stack.ledger.assert_consistent("t")


def test_a_message_that_is_lost_is_sent_again(on_rabbitmq: Stack) -> None:
    stack = on_rabbitmq
    result = stack.call("Something", task_id="lost")
    with stack.wiring.app.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("orchestrator.steps") == 2, "the task's and its step's"
    with worker(stack, slots=2):
        stack.healed(lambda: stack.ledger.row("lost")["finished_at"], "the end")
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    stack.ledger.assert_consistent("lost")


def test_a_worker_gives_its_step_back_and_the_next_one_goes_on(on_rabbitmq: Stack) -> None:
    stack = on_rabbitmq
    stack.notes.hold("t.2")
    result = stack.call(SCRIPT, task_id="t")
    with worker(stack, pool="prefork", slots=1):
        child_at(stack, "t", 2)
    stack.notes.let_go("t.2")
    with worker(stack, slots=1):
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    (step,) = stack.ledger.steps("t").values()
    assert stack.ledger.names(step) == ["claim", "yield", "claim", "succeed"]
    assert asked(stack, "t") == [1, 2, 2, 3]


def test_a_cancel_and_a_drained_worker_that_missed_the_word(on_rabbitmq: Stack) -> None:
    stack = on_rabbitmq
    stack.notes.hold("c.work")
    stack.call("Something", task_id="c")
    with worker(stack, slots=1):
        stack.began("c.work")
        stack.command(intervene.cancel, "c")
        assert stack.ends("c") == "cancelled"
        stack.ledger.run("UPDATE agents SET drain_requested = true, status = 'draining'")
        time.sleep(1.5)  # three heartbeats
        stack.call("Something", task_id="d")
        time.sleep(1.5)
        (step,) = stack.ledger.steps("d").values()
        assert stack.ledger.names(step) == []
        stack.ledger.run("UPDATE agents SET drain_requested = false, status = 'idle'")
        assert stack.ends("d") == "completed", "the message had stayed in its queue"


# --- doctor -------------------------------------------------------------------------------------------------


def about(node: Node) -> Finding:
    (found,) = rabbitmq(Settings(broker_url=SecretStr(node.url)), node.environment)
    return found


def test_the_doctor_asks_the_node_for_its_consumer_timeout(rabbitmq_node: Node) -> None:
    found = about(rabbitmq_node)
    assert found.level is Level.WARNING
    assert "30 minutes" in found.why
    assert "86400000" in found.fix


def test_the_doctor_says_when_it_can_t_ask_a_node(rabbitmq_node: Node) -> None:
    elsewhere = Node(rabbitmq_node.url.replace("127.0.0.1", "192.0.2.1"), rabbitmq_node.environment)
    found = about(elsewhere)
    assert found.level is Level.WARNING
    assert "can't be asked" in found.why
