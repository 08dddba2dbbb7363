"""Several models as one: which answers, and which stands in for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import ModelAccess, Stop
from orchestrator.core.model_choice import ModelOptions, ModelSelection, TaskType
from orchestrator.core.verdict import Done, StopReason
from orchestrator.engine import loop
from orchestrator.engine.ports import (
    Model,
    ModelError,
    ModelSwitched,
    Stopped,
    StreamEvent,
    Turn,
)
from orchestrator.engine.providers.making import Making, make_selected
from tests.engine_world import FileJournal, FolderWorkspace, Wire, assignment
from tests.integration.api_server import wired
from tests.integration.provider_turns import reply_of, went_on
from tests.integration.test_provider_faults import REQUEST, SCRIPT, SECONDS
from tests.model_server import RunningModel, model_server


def selected(server: RunningModel, selection: ModelSelection, **options: ModelOptions) -> Model:
    how = Making({name.replace("_", "-"): option for name, option in options.items()}, SECONDS)
    return make_selected(selection, ModelAccess(server.url, "run-token"), how)


def test_a_fallback_answers_after_the_failed_send_is_closed() -> None:
    heard: list[StreamEvent] = []
    with model_server(SCRIPT) as server:
        server.fault("stall-alive", when={"model": "claude-a"})
        how = Making({}, replace(SECONDS, stall=timedelta(seconds=3)))
        selection = ModelSelection("claude-a", ("gpt-b",))
        model = make_selected(selection, ModelAccess(server.url, "t"), how)
        reply = model.reply(REQUEST, heard.append, Stop())
        sends = server.await_end()
    assert reply.model == "gpt-b"
    assert reply.reason == "claude-a failed: model-stalled"
    assert ModelSwitched("gpt-b", "claude-a failed: model-stalled") in heard
    assert [(send.model, send.outcome) for send in sends] == [
        ("claude-a", "client-left"),
        ("gpt-b", "complete"),
    ]


def test_a_model_that_failed_rests_and_the_reason_is_kept() -> None:
    with model_server(SCRIPT) as server:
        server.fault("overloaded", when={"model": "claude-a"})
        model = selected(server, ModelSelection("claude-a", ("claude-b",)))
        request = went_on(REQUEST, reply_of(model))
        second = reply_of(model, request)
        assert [send.model for send in server.sends()] == ["claude-a", "claude-b", "claude-b"]
    assert second.reason == "claude-a rests: model-overloaded"


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("bad-request", {}),
        ("context-too-long", {}),
        ("refusal", {}),
        ("billing", {"status": 402, "headers": {"x-orchestrator-code": "budget-exhausted"}}),
        ("unauthorized", {"headers": {"x-orchestrator-code": "run-token-invalid"}}),
    ],
)
def test_what_no_other_model_can_mend_is_raised_at_once(fault: str, how: dict[str, Any]) -> None:
    with model_server(SCRIPT) as server:
        server.fault(fault, **how)
        with pytest.raises(ModelError):
            reply_of(selected(server, ModelSelection("claude-a", ("claude-b",))))
        assert len(server.sends()) == 1


def test_a_stop_in_the_middle_asks_no_fallback() -> None:
    stop = Stop()
    with model_server(SCRIPT) as server, ThreadPoolExecutor(1) as pool:
        server.fault("stall")
        model = selected(server, ModelSelection("claude-a", ("claude-b",)))
        asked = pool.submit(model.reply, REQUEST, lambda _: None, stop)
        server.await_sends(1)
        stop.set(StopReason.CANCEL)
        with pytest.raises(Stopped):
            asked.result(10)
        assert len(server.await_end()) == 1


def test_the_last_model_s_failure_is_raised() -> None:
    with model_server(SCRIPT) as server:
        server.fault("overloaded")
        server.fault("rate-limit", retry_after=5)
        with pytest.raises(ModelError) as raised:
            reply_of(selected(server, ModelSelection("claude-a", ("claude-b",))))
        assert len(server.sends()) == 2
    assert (raised.value.code, raised.value.retry_after) == ("model-rate-limited", timedelta(seconds=5))


def test_models_change_with_the_phase_of_the_work() -> None:
    special = {TaskType.PLANNING: "claude-plan", TaskType.TESTING: "gpt-test"}
    turns = [
        {"text": "Plan.", "thinking": "Secret plan.", "calls": [{"name": "read_file", "arguments": {}}]},
        {"text": "Write.", "calls": [{"name": "write_file", "arguments": {}}]},
        {"text": "Write more.", "calls": [{"name": "run_command", "arguments": {}}]},
        {"text": "Done.", "calls": [{"name": "attempt_completion", "arguments": {}}]},
    ]
    with model_server({"conversations": [{"turns": turns}]}) as server:
        model = selected(server, ModelSelection("claude-main", (), special))
        request, reasons = REQUEST, []
        for _ in turns:
            reply = reply_of(model, request)
            reasons.append(reply.reason)
            request = went_on(request, reply)
        sends = server.sends()
    assert [send.model for send in sends] == ["claude-plan", "claude-plan", "claude-main", "gpt-test"]
    assert reasons == ["the model for planning"] * 2 + ["the default model", "the model for testing"]
    thoughts = ["Secret plan." in str(send.body) for send in sends]
    assert thoughts == [False, True, False, False], "thoughts are the model's own"
    assert not any("thought_by" in str(send.body) for send in sends)


@pytest.mark.parametrize(
    ("task_type", "model"),
    [
        ("code_review", "claude-critic"),
        ("review", "claude-critic"),
        ("testing", "claude-plan"),
        ([], "claude-plan"),
    ],
)
def test_a_step_that_looks_at_another_s_work_has_the_model_for_that(
    tmp_path: Path, task_type: object, model: str
) -> None:
    chosen = {"planning": "claude-plan", "code_review": "claude-critic"}
    wiring = wired("postgresql://nobody@127.0.0.1:9/none", tmp_path, task_models=chosen)
    with model_server(SCRIPT) as server:
        step = assignment(agent_type="engine", spec={"task_type": task_type})
        reply = reply_of(wiring.live_model(ModelAccess(server.url, "t"), step))
        (send,) = server.sends()
    assert send.model == model
    assert reply.reason == f"the model for {'code review' if model == 'claude-critic' else 'planning'}"


def test_the_smallest_window_is_that_of_all() -> None:
    sizes = {"a": ModelOptions(context_tokens=200_000), "b": ModelOptions(context_tokens=32_000)}
    access = ModelAccess("http://127.0.0.1:9", "t")
    made = make_selected(ModelSelection("a", ("b", "c")), access, Making(sizes))
    assert getattr(made, "context_tokens") == 32_000  # noqa: B009 - a model may have it or not
    assert getattr(made, "metered") is True  # noqa: B009


def test_a_step_tells_of_its_models_and_each_of_its_sends_has_a_key(tmp_path: Path) -> None:
    turns = [
        {"text": "One.", "calls": [{"name": "write_file", "arguments": {"path": "a", "content": "b"}}]},
        {"calls": [{"name": "attempt_completion", "arguments": {"summary": "Done."}}]},
    ]
    wire, journal = Wire(), FileJournal(tmp_path / "journal")
    with model_server({"conversations": [{"turns": turns}]}) as server:
        server.fault("cut", turn=1)
        verdict = loop.work(
            assignment(agent_type="engine"),
            wire,
            model=selected(server, ModelSelection("claude-a", ("gpt-b",))),
            journal=journal,
            workspace=FolderWorkspace(tmp_path / "workspace"),
        )
        sends = server.sends()
        assert server.finished_twice() == []
    assert verdict == Done("Done.")
    assert [send.model for send in sends] == ["claude-a", "claude-a", "gpt-b"]
    assert {send.headers["x-task-id"] for send in sends} == {"task"}
    keys = [send.headers["idempotency-key"] for send in sends]
    assert keys == ["step-1-1-turn-1-1", "step-1-2-turn-3-1", "step-1-2-turn-3-1"]
    reason = "claude-a failed: model-stream-dropped"
    assert ("model", {"model": "gpt-b", "reason": reason}) in wire.notes
    turns_kept = [entry for entry in journal.load().entries if isinstance(entry, Turn)]
    assert [turn.reason for turn in turns_kept] == ["the default model", reason]
