from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import StopReason
from orchestrator.engine.ports import ModelError, ModelRequest, Reply, Stopped, TextDelta
from orchestrator.engine.providers.record import Recorder, save
from orchestrator.engine.providers.replay import ReplayModel, canonical, digest, load
from tests.engine_world import Script, call, done, text

FIRST = ModelRequest("system", ({"name": "tool"},), [{"role": "user", "content": [text("Go.\nNow.")]}])


def second(result: str) -> ModelRequest:
    heard = {"type": "tool_result", "tool_use_id": "a", "content": result}
    turns: list[Mapping[str, Any]] = [
        *FIRST.messages,
        {"role": "assistant", "content": [text("I go."), call("a", "tool")]},
        {"role": "user", "content": [heard]},
    ]
    return replace(FIRST, messages=turns)


@pytest.fixture
def recording(tmp_path: Path) -> ReplayModel:
    recorder = Recorder(Script([[text("I go."), call("a", "tool")], [done()]]), "for a test")
    for request in (FIRST, second("ran in 0.012s, 3 passed"), FIRST):
        recorder.reply(request, lambda _: None, Stop())
    assert save(recorder.lines, tmp_path / "folder" / "name.jsonl") == 2
    return load(tmp_path, "folder/name")


def answer(model: ReplayModel, request: ModelRequest) -> Reply:
    return model.reply(request, lambda _: None, Stop())


def mismatch(model: ReplayModel, request: ModelRequest) -> str:
    with pytest.raises(ModelError) as raised:
        answer(model, request)
    assert (raised.value.error, raised.value.code) == (ErrorClass.RECORDING, "recording-mismatch")
    assert not raised.value.retryable
    return raised.value.message


def test_it_answers_what_was_recorded(recording: ReplayModel) -> None:
    heard: list[object] = []
    reply = recording.reply(FIRST, heard.append, Stop())
    assert reply.content == (text("I go."), call("a", "tool"))
    assert heard[0] == TextDelta("I go.")
    assert recording.kind == "recorded"
    assert answer(recording, second("ran in 0.012s, 3 passed")).content == (done(),)


def test_only_durations_in_results_may_differ(recording: ReplayModel) -> None:
    assert answer(recording, second("ran in 12.9s, 3 passed")).content == (done(),)
    mismatch(recording, second("ran in 0.012s, 4 passed"))
    mismatch(recording, second("ran in 0.012s, 3 passed\n"))


def test_a_departure_is_named_with_its_turn_and_shown(recording: ReplayModel) -> None:
    told = mismatch(recording, second("ran in 0.012s, 2 passed"))
    assert "turn 2 of recording folder/name" in told
    assert "-ran in 0s, 3 passed" in told
    assert "+ran in 0s, 2 passed" in told
    assert "the system part" in mismatch(recording, replace(FIRST, system="other"))
    assert "the tools part" in mismatch(recording, replace(FIRST, tools=()))
    earlier = second("ran in 0.012s, 3 passed")
    changed = [{"role": "user", "content": [text("Go!")]}, *earlier.messages[1:]]
    assert "an earlier message" in mismatch(recording, replace(earlier, messages=changed))
    longer = [*earlier.messages, {"role": "assistant", "content": [done()]}, FIRST.messages[0]]
    assert "ends before this turn" in mismatch(recording, replace(earlier, messages=longer))


def test_a_long_departure_is_shown_in_part(recording: ReplayModel) -> None:
    told = mismatch(recording, second("\n".join(f"line {number} " + "x" * 500 for number in range(500))))
    assert len(told) < 10_000
    assert "more lines" in told


def test_a_stop_is_obeyed_before_it_answers(recording: ReplayModel) -> None:
    stop = Stop()
    stop.set(StopReason.CANCEL)
    with pytest.raises(Stopped):
        recording.reply(FIRST, lambda _: None, stop)


@pytest.mark.parametrize(
    "name", ["", "missing", "../folder/name", "/etc/passwd", "folder/../folder/name", "folder\0"]
)
@pytest.mark.usefixtures("recording")
def test_a_recording_that_is_not_there_is_unknown(tmp_path: Path, name: str) -> None:
    assert (tmp_path / "folder" / "name.jsonl").exists()
    with pytest.raises(ModelError) as raised:
        load(tmp_path / "folder" if name == "missing" else tmp_path, name)
    assert raised.value.code == "recording-unknown"


texts = st.text(max_size=30)


@given(texts, texts)
def test_different_requests_have_different_hashes(one: str, other: str) -> None:
    first, again, different = (
        digest(canonical(replace(FIRST, messages=[{"role": "user", "content": [text(words)]}])))
        for words in (one, one, other)
    )
    assert first == again
    assert (first == different) == (one == other)


@given(st.floats(min_value=0, max_value=1e6), st.floats(min_value=0, max_value=1e6))
def test_durations_are_the_same_whatever_they_are(one: float, other: float) -> None:
    hashes = {digest(canonical(second(f"Ran 3 tests in {seconds:.3f}s"))) for seconds in (one, other)}
    assert len(hashes) == 1


def test_what_is_said_outside_of_results_is_not_normalised() -> None:
    one, other = (
        replace(FIRST, messages=[{"role": "user", "content": [text(f"wait 0.{digit}s")]}]) for digit in "12"
    )
    assert digest(canonical(one)) != digest(canonical(other))
    assert json.dumps(canonical(one), sort_keys=True)
