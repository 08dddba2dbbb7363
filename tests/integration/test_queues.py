from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES, flatten
from redis import Redis

import celeryconfig
from orchestrator.core.errors import Denied, Refused
from orchestrator.core.flow import compile_plan
from orchestrator.core.plan import PlanStep, validate
from orchestrator.core.priority import Priority
from orchestrator.queues import settings
from orchestrator.queues.app import create_app
from orchestrator.queues.canvas import sent_again
from orchestrator.queues.messages import Reference, opened, sealed, sign, step_label, verify
from orchestrator.queues.names import Lane, QueueName
from orchestrator.queues.topology import lanes_of, topology
from tests.integration.stage import REPOSITORY, Stage, staged, worker

SIMPLE = (bool, int, float, str, list, timedelta, type(None))
SECRET = b"secret"
REFERENCE = Reference("orchestrator.run_step", "default", "task_1", "workflow_1", "step_1")


@pytest.fixture(params=["redis", "rabbitmq"])
def stage(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Stage]:
    broker: str = redis_url if request.param == "redis" else request.getfixturevalue("rabbitmq_url")
    with staged(broker, redis_url) as made:
        yield made


def test_what_is_urgent_is_served_before_what_was_sent_earlier(stage: Stage, tmp_path: Path) -> None:
    wanted = []
    for priority in reversed(Priority):
        for number in range(5):
            stage.send(f"{priority}-{number}", priority)
    for priority in Priority:
        wanted += [f"{priority}-{number}" for number in range(5)]
    with worker(stage, tmp_path, slots=1):
        stage.ended(len(wanted))
    assert stage.steps("started") == wanted


def test_a_worker_takes_no_message_that_it_has_no_slot_for(stage: Stage, tmp_path: Path) -> None:
    """Else something urgent that comes later would wait behind it."""
    stage.hold("first")
    with worker(stage, tmp_path, slots=1):
        stage.send("first", Priority.LOW)
        stage.started(1)
        for number in range(3):
            stage.send(f"low-{number}", Priority.LOW)
        stage.send("urgent", Priority.CRITICAL)
        stage.let_go("first")
        # With RabbitMQ a late-acknowledging worker has fetched one message ahead of what it runs.
        ahead = 0 if stage.topology.broker == "redis" else 1
        assert stage.started(5).index("urgent") <= 1 + ahead


def test_a_worker_serves_its_own_lanes_alone(redis_url: str, tmp_path: Path) -> None:
    with staged(redis_url, redis_url) as stage:
        stage.send("low", Priority.LOW)
        with worker(stage, tmp_path, lanes=(Lane.HIGH, Lane.SYSTEM)):
            stage.send("high", Priority.HIGH)
            assert stage.ended(1) == ["high"]
        assert stage.notes.llen(QueueName.LOW) == 1


def test_a_parked_step_outlives_its_worker(stage: Stage, tmp_path: Path) -> None:
    plan = validate(
        [
            PlanStep("p", "do"),
            *(PlanStep(key, "do", ("p",)) for key in "ab"),
            PlanStep("end", "do", ("a", "b")),
            PlanStep("last", "do", ("end",)),
        ]
    )
    stage.notes.set("park:b", 1)
    with worker(stage, tmp_path):
        stage.send_canvas(plan, compile_plan(plan).canvases[0])
        stored = stage.parked("b")
        stage.ended(2)
    message = stage.message("b")
    with worker(stage, tmp_path):
        sent_again(stage.app, stored, message.destination, message.label).apply_async()
        assert stage.ended(5) == ["p", "a", "b", "end", "last"]


def test_on_the_broker_lie_ids_a_signature_and_a_label(redis_url: str) -> None:
    with staged(redis_url, redis_url) as stage:
        steps = [
            PlanStep("a", "the secret plan"),
            PlanStep("b", "the secret plan", ("a",), spec={"key": "s3cr3t"}),
        ]
        plan = validate(steps)
        stage.send_canvas(plan, compile_plan(plan).canvases[0])
        (raw,) = stage.notes.lrange(QueueName.MEDIUM, 0, -1)
        headers = json.loads(raw)["headers"]
        assert (headers["shadow"], headers["argsrepr"]) == ("step:agent", "('task_1', 'step 1/2')")
        assert b"secret" not in raw
        assert b"s3cr3t" not in raw


def test_every_key_of_ours_begins_with_the_prefix(redis_url: str) -> None:
    app = create_app(redis_url, key_prefix="mine", waits=False)

    @app.task(shared=False, name="orchestrator.noop")
    def noop() -> None: ...

    noop.apply_async(queue=QueueName.LOW.value)
    app.backend.set_chord_size("a-chord", 2)
    with Redis.from_url(redis_url) as client:
        keys = {key.decode() for key in client.scan_iter()}
    backend: Any = app.backend
    backend.client.connection_pool.disconnect()
    app.close()
    assert keys
    assert {key for key in keys if not key.startswith("mine:")} == set()
    assert f"mine:{QueueName.LOW}" in keys


def test_a_message_is_accepted_with_its_signature_alone() -> None:
    arguments = sealed(REFERENCE, SECRET)
    assert opened(REFERENCE.kind, arguments, SECRET) == REFERENCE
    assert verify(REFERENCE, sign(REFERENCE, SECRET), SECRET)
    assert json.loads(json.dumps(arguments)) == arguments


@pytest.mark.parametrize("field", ["tenant_id", "task_id", "workflow_id", "step_id", "signature"])
def test_a_changed_or_missing_field_is_refused(field: str) -> None:
    arguments = sealed(REFERENCE, SECRET)
    forgeries: list[dict[str, object]] = [
        {**arguments, field: arguments[field] + "x"},
        {**arguments, field: None},
        {**arguments, field: "é"},
        {key: value for key, value in arguments.items() if key != field},
        {**arguments, "extra": "x"},
    ]
    for forged in forgeries:
        with pytest.raises(Denied, match="message-forged"):
            opened(REFERENCE.kind, forged, SECRET)


def test_a_signature_is_for_one_kind_and_one_secret() -> None:
    for kind, secret in [("orchestrator.sweep", SECRET), (REFERENCE.kind, b"other")]:
        with pytest.raises(Denied):
            opened(kind, sealed(REFERENCE, SECRET), secret)


def test_neighbouring_fields_are_kept_apart() -> None:
    one, other = Reference("k", "ab", "c"), Reference("k", "a", "bc")
    assert sign(one, SECRET) != sign(other, SECRET)


def test_shadows_come_from_a_small_set_whatever_a_plan_calls_its_kinds() -> None:
    kinds = ["agent", "gate", "plan", "../../etc", "<b>"]
    assert [step_label("t", kind, 1, 1).shadow for kind in kinds] == [
        "step:agent",
        "step:gate",
        "plan",
        "step:other",
        "step:other",
    ]


def test_queues_are_always_listed_most_urgent_first() -> None:
    on_redis = topology("redis://localhost")
    assert on_redis.consumed([Lane.LOW, Lane.SYSTEM, Lane.CRITICAL]) == (
        QueueName.SYSTEM,
        QueueName.CRITICAL,
        QueueName.LOW,
    )
    assert [queue.name for queue in on_redis.queues] == list(on_redis.consumed(Lane))
    assert len({queue.routing_key for queue in on_redis.queues}) == len(Lane)


def test_on_rabbitmq_one_queue_orders_by_the_messages_priority() -> None:
    on_rabbitmq = topology("amqp://localhost")
    assert on_rabbitmq.consumed([Lane.LOW, Lane.HIGH]) == (QueueName.STEPS,)
    urgencies = [on_rabbitmq.destination(priority).urgency for priority in Priority]
    assert urgencies == sorted(urgencies, reverse=True, key=lambda urgency: urgency or 0)
    steps: Any
    (steps,) = [queue for queue in on_rabbitmq.queues if queue.name == QueueName.STEPS]
    assert steps.max_priority == max(urgency or 0 for urgency in urgencies)


def test_another_broker_is_refused() -> None:
    with pytest.raises(Refused, match="broker-unsupported"):
        topology("sqs://localhost")


def test_lanes_are_understood_by_name_and_by_queue_in_any_order() -> None:
    assert lanes_of("low, orchestrator.high,critical") == (Lane.CRITICAL, Lane.HIGH, Lane.LOW)
    for wrong in ["", "urgent", "high;low"]:
        with pytest.raises(Refused, match="unknown-queue"):
            lanes_of(wrong)


KNOWN = {setting[0] for setting in flatten(NAMESPACES)}


def test_every_setting_is_one_that_celery_knows() -> None:
    public = {name: value for name, value in vars(celeryconfig).items() if name.islower() and name[0] != "_"}
    ours = {name for name, value in public.items() if isinstance(value, SIMPLE)}
    assert ours >= {"task_acks_late", "accept_content", "result_expires"}
    for url in ("redis://localhost", "amqp://localhost"):
        ours |= settings.located(url, "redis://localhost").keys()
    # The backend reads it, the table of settings forgot it.
    assert ours - KNOWN == {"redis_backend_health_check_interval"}


def test_celeryconfig_says_what_the_app_is_set_to() -> None:
    app = create_app("redis://localhost", waits=False)
    said = {name: value for name, value in vars(celeryconfig).items() if name in KNOWN}
    assert said["accept_content"] == ["json"]
    assert {name: app.conf[name] for name in said} == said


def test_an_app_connects_to_nothing_and_is_nobodys_default() -> None:
    code = (
        "import socket, celery\n"
        "def refuse(*_): raise AssertionError('a connection at import')\n"
        "socket.socket.connect = refuse\n"
        "from orchestrator.queues.app import create_app\n"
        "app = create_app('redis://localhost:1', key_prefix='x')\n"
        "assert app.conf.task_acks_late and not app.conf.result_extended\n"
        "assert celery.current_app.main != 'orchestrator'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, timeout=60)
