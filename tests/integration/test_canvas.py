from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.flow import compile_plan
from orchestrator.core.plan import Plan, PlanStep, validate
from orchestrator.core.priority import Priority
from orchestrator.queues.canvas import sent_again
from orchestrator.queues.messages import step_label
from tests.flows import canvas_starts
from tests.integration.stage import Stage, staged, worker
from tests.servers import RedisServer

DAGS = Path(__file__).parent.parent / "data" / "dags"


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """Redis holds the results with either broker."""
    if request.param == "rabbitmq":
        url: str = request.getfixturevalue("rabbitmq_url")
        return url
    return "redis"


@pytest.fixture(scope="module")
def crew(broker: str, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A broker, and a worker with eight slots."""
    url = redis_server.fresh()
    folder = tmp_path_factory.mktemp("crew")
    with staged(url if broker == "redis" else broker, url) as made, worker(made, folder):
        yield made


@pytest.fixture
def stage(crew: Stage) -> Stage:
    """The crew without a memory of earlier tests."""
    crew.forget()
    return crew


def plan_of(**needs: str) -> Plan:
    return validate(PlanStep(key, "do", tuple(names.split())) for key, names in needs.items())


def assert_in_order(plan: Plan, log: list[dict[str, Any]]) -> None:
    """Every step ran once, none before the last step that it needs had ended."""
    started = {entry["step"]: entry["at"] for entry in log if entry["event"] == "started"}
    ended = {entry["step"]: entry["at"] for entry in log if entry["event"] == "ended"}
    assert Counter(entry["step"] for entry in log if entry["event"] == "started") == Counter(plan.keys)
    assert ended.keys() == started.keys()
    assert [
        (need, step.key) for step in plan.steps for need in step.needs if ended[need] > started[step.key]
    ] == []


SHAPES = {
    "chain": plan_of(a="", b="a", c="b"),
    "fork": plan_of(p="", a="p", b="p", c="p"),
    "fork that joins": plan_of(p="", a="p", b="p", end="a b", last="end"),
    "roots that join": plan_of(a="", b="", end="a b"),
    "group body": plan_of(a="", b="", x="a b", y="a b", z="a b"),
    "group body that goes on": plan_of(a="", b="", x="a b", x2="x", y="a b", y2="y", y3="y"),
    "group body that joins": plan_of(a="", b="", x="a b", y="a b", end="x y", last="end"),
    "group body after a chain": plan_of(p="", a="p", b="p", x="a b", y="a b", end="x y"),
    "chord in a header": plan_of(a="", b="", m="a b", c="", end="m c"),
    "chord in a header, with chains": plan_of(p="", a="p", a2="a", b="p", m="a2 b", n="m", c="p", end="n c"),
    "three chords deep": plan_of(a="", b="", m="a b", c="", n="m c", d="", end="n d", last="end"),
    "group body in a header": plan_of(a="", b="", x="a b", y="a b", c="", end="x y c"),
    "fork in a header": plan_of(p="", q="", a="p", b="p", end="a b q"),
    "chord after chord": plan_of(p="", a="p", b="p", m="a b", c="m", d="m", end="c d", last="end"),
    "two chords in a header": plan_of(a="", b="", m="a b", c="", d="", n="c d", end="m n"),
    "aside of a member": plan_of(p="", a="p", side="a", more="side", b="p", end="a b"),
    "asides of a member": plan_of(a="", s1="a", s2="a", b="", end="a b"),
    "chord aside of a member": plan_of(a="", x="a", y="a", xy="x y", b="", end="a b"),
    "aside on the way to a member": plan_of(p="", a="p", a2="a", side="a", b="p", end="a2 b"),
    "fork aside in a chord's body": plan_of(
        a="", b="", m="a b", s="m", n="m", c="", end="n c", t="end", u="end"
    ),
    "released": plan_of(a="", b="", c="", left="a b", right="b c", end="left right"),
}


@pytest.mark.parametrize("plan", SHAPES.values(), ids=SHAPES.keys())
def test_each_shape_runs_each_step_once_and_in_order(stage: Stage, plan: Plan) -> None:
    assert_in_order(plan, stage.run(plan))


@pytest.mark.parametrize("name", ["mapping", "two-chromosomes"])
def test_a_real_shape_runs_each_step_once_and_in_order(stage: Stage, name: str) -> None:
    steps = json.loads((DAGS / f"{name}.json").read_text())["steps"]
    plan = validate(PlanStep(step["id"], "do", tuple(step["needs"])) for step in steps)
    assert_in_order(plan, stage.run(plan))


def test_nothing_waits_for_what_hangs_aside_of_a_chords_member(stage: Stage) -> None:
    plan = plan_of(p="", a="p", side="a", b="p", end="a b")
    assert len(canvas_starts(compile_plan(plan))) == 5
    stage.hold("side")
    stage.send_canvas(plan, compile_plan(plan).canvases[0])
    assert set(stage.ended(4)) == {"p", "a", "b", "end"}
    stage.let_go("side")
    assert stage.ended(5)[-1] == "side"


def test_a_branch_of_a_group_body_waits_for_no_other(stage: Stage) -> None:
    plan = plan_of(a="", b="", x="a b", y="a b", y2="y", y3="y2")
    stage.hold("x")
    stage.send_canvas(plan, compile_plan(plan).canvases[0])
    assert set(stage.ended(5)) == {"a", "b", "y", "y2", "y3"}
    stage.let_go("x")
    assert stage.ended(6)[-1] == "x"


def test_the_inner_chord_goes_on_while_the_outer_one_still_waits(stage: Stage) -> None:
    plan = plan_of(a="", b="", m="a b", n="m", c="", end="n c")
    stage.hold("c")
    stage.send_canvas(plan, compile_plan(plan).canvases[0])
    assert set(stage.ended(4)) == {"a", "b", "m", "n"}
    assert "end" not in stage.steps("started")
    stage.let_go("c")
    assert stage.ended(6)[-1] == "end"


def test_every_message_shows_its_label_and_carries_ids_alone(stage: Stage) -> None:
    plan = plan_of(p="", a="p", side="a", b="p", x="a b", y="a b", y2="y", z="x y2", last="z")
    number = {key: place for place, key in enumerate(plan.keys, 1)}
    for entry in stage.run(plan):
        assert entry["celery_id"] == entry["step"]
        assert entry["shadow"] == "step:agent"
        assert entry["argsrepr"] == f"('task_1', 'step {number[entry['step']]}/{len(plan.keys)}')"
        assert entry["kwargsrepr"] == "{}"
        assert entry["args"] == []
        assert entry["kwargs"].keys() == {"tenant_id", "task_id", "workflow_id", "step_id", "signature"}
        medium = stage.topology.destination(Priority.MEDIUM)
        assert (entry["queue"], entry["priority"]) == (medium.queue, medium.urgency or 0)


@pytest.mark.parametrize(
    ("plan", "step"),
    [
        (plan_of(a="", b="a", c="b"), "b"),
        (plan_of(p="", a="p", b="p", end="a b", last="end"), "b"),
        (plan_of(a="", a2="a", b="", end="a2 b"), "a"),
        (plan_of(a="", b="", m="a b", c="", end="m c"), "m"),
        (plan_of(a="", b="", m="a b", c="", end="m c"), "a"),
        (plan_of(a="", b="", x="a b", y="a b", end="x y"), "x"),
        (plan_of(p="", a="p", side="a", b="p", end="a b"), "a"),
    ],
    ids=["chain", "header", "chain in a header", "inner body", "inner header", "group body", "aside"],
)
def test_a_step_that_parked_goes_on_in_its_chain_and_chord_with_the_same_id(
    stage: Stage, plan: Plan, step: str
) -> None:
    stage.notes.set(f"park:{step}", 1)
    for canvas in compile_plan(plan).canvases:
        stage.send_canvas(plan, canvas)
    stored = stage.parked(step)
    unaffected = {key for key in plan.keys if key != step and step not in ancestors(plan, key)}
    assert set(stage.ended(len(unaffected))) == unaffected
    label = step_label("task_1", "agent", plan.keys.index(step) + 1, len(plan.keys))
    sent_again(stage.app, stored, stage.topology.destination(Priority.CRITICAL), label).apply_async()
    assert set(stage.ended(len(plan.keys))) == set(plan.keys)
    runs = [entry for entry in stage.log() if entry["step"] == step]
    assert [entry["event"] for entry in runs] == ["started", "started", "ended"]
    assert {(entry["celery_id"], entry["argsrepr"], entry["group"]) for entry in runs} == {
        (step, runs[0]["argsrepr"], runs[0]["group"])
    }
    critical = stage.topology.destination(Priority.CRITICAL)
    assert (runs[-1]["queue"], runs[-1]["priority"]) == (critical.queue, critical.urgency or 0)
    others = [entry for entry in stage.log() if entry["step"] != step and entry["event"] == "started"]
    assert Counter(entry["step"] for entry in others) == Counter(set(plan.keys) - {step})
    medium = stage.topology.destination(Priority.MEDIUM)
    assert {entry["queue"] for entry in others} == {medium.queue}
    # On RabbitMQ what a step releases inherits the priority with which it was sent.
    assert {entry["priority"] for entry in others} <= {medium.urgency or 0, critical.urgency or 0}


def ancestors(plan: Plan, key: str) -> set[str]:
    return set(plan.needs[key]).union(*(ancestors(plan, need) for need in plan.needs[key]))


def test_a_stored_signature_is_sent_again_without_what_belonged_to_one_sending(stage: Stage) -> None:
    message = stage.message("a", Priority.LOW)
    stage.notes.set("park:a", 1)
    stage.send("a", Priority.HIGH)
    stored = dict(stage.parked("a"))
    stored["options"] = {
        **stored["options"],
        "expires": "2001-01-01T00:00:00+00:00",
        "eta": None,
        "retries": 9,
    }
    again = sent_again(stage.app, stored, message.destination, message.label)
    assert again.options.keys().isdisjoint({"expires", "eta", "retries"})
    again.apply_async()
    assert stage.ended(1) == ["a"]
    assert stage.log()[-1]["queue"] == message.destination.queue


def test_a_member_that_is_delivered_twice_releases_its_join_once(stage: Stage) -> None:
    plan = plan_of(p="", a="p", b="p", end="a b")
    stage.hold("b")
    stage.notes.set("park:a", 1)
    stage.send_canvas(plan, compile_plan(plan).canvases[0])
    stored, message = stage.parked("a"), stage.message("a")
    for _ in range(3):
        sent_again(stage.app, stored, message.destination, message.label).apply_async()
    stage.ended(4)
    stage.let_go("b")
    stage.ended(6)
    assert Counter(stage.steps("ended")) == Counter({"a": 3, "p": 1, "b": 1, "end": 1})
