"""What a real API said is recorded and said again. Another model server stands in for the API over there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from orchestrator.core.errors import Refused
from orchestrator.local import ports
from orchestrator.modelserver import recordings
from tests.integration.test_model_server import CALLS, CHAT, MESSAGES, RESPONSES, SCRIPT
from tests.model_server import RunningModel, model_process, model_server

KEY = "sk-a-key-that-nobody-may-see"


def claude(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=KEY, base_url=url, max_retries=0)


def gpt(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0)


async def talk(url: str, words: str = f"fix the bug, and never say {KEY}") -> list[Any]:
    """One reply in each form, as JSON."""
    asked = [{"role": "user", "content": words}]
    async with claude(url) as client:
        async with client.messages.stream(**{**MESSAGES, "messages": asked}) as stream:
            streamed = await stream.get_final_message()
        whole = await client.messages.create(**{**MESSAGES, "messages": asked})
    async with gpt(url) as other:
        async with other.responses.stream(**{**RESPONSES, "input": words}) as response:
            answered = await response.get_final_response()
        results = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "ok"}
            for item in answered.output
            if item.type == "function_call"
        ]
        after = await other.responses.create(
            model="m", previous_response_id=answered.id, input=results, tools=RESPONSES["tools"]
        )
        chatted = await other.chat.completions.create(**{**CHAT, "messages": asked})
    return [reply.to_dict(mode="json") for reply in (streamed, whole, answered, after, chatted)]


def recorded(folder: Path, *, fault: str | None = None) -> tuple[Path, list[Any], RunningModel]:
    """The recording of a talk, what was heard then, and the API that was recorded."""
    file = folder / "recording.jsonl"
    with (
        model_server(SCRIPT) as real,
        model_process(folder, None, "--record", str(file), "--upstream", real.url) as passing,
    ):
        if fault is not None:
            real.fault(fault, retry_after=3)
            with pytest.raises(anthropic.RateLimitError):
                asyncio.run(talk(passing.url))
        heard = asyncio.run(talk(passing.url))
        assert {send["conversation"] for send in passing.sends()} == {"upstream"}
        return file, heard, real


def test_what_was_recorded_is_heard_again_by_the_same_words(tmp_path: Path) -> None:
    file, heard, real = recorded(tmp_path)
    assert heard[0]["content"][0]["text"] == CALLS["text"]
    assert len(real.sends()) == 5
    with model_process(tmp_path, None, "--replay", str(file)) as again:
        assert asyncio.run(talk(again.url)) == heard
        assert asyncio.run(talk(again.url)) == heard
        sends = again.sends()
    assert {(send["conversation"], send["outcome"]) for send in sends} == {("recorded", "complete")}
    assert [send["turn"] for send in sends[:3]] == [0, 0, 0]


def test_other_words_get_what_was_said_at_the_same_turn(tmp_path: Path) -> None:
    file, heard, _ = recorded(tmp_path)
    with model_process(tmp_path, None, "--replay", str(file)) as again:
        assert asyncio.run(talk(again.url, "fix it today"))[:3] == heard[:3]
        assert "recorded-alike" in {send["conversation"] for send in again.sends()}


def test_a_refusal_is_recorded_and_comes_again_before_the_good_reply(tmp_path: Path) -> None:
    file, heard, _ = recorded(tmp_path, fault="rate-limit")
    with model_process(tmp_path, None, "--replay", str(file)) as again:
        with pytest.raises(anthropic.RateLimitError) as refused:
            asyncio.run(talk(again.url))
        assert refused.value.response.headers["retry-after"] == "3"
        assert asyncio.run(talk(again.url)) == heard


def test_a_recording_says_where_it_is_from_and_holds_no_key(tmp_path: Path) -> None:
    file, _, real = recorded(tmp_path)
    text = file.read_text()
    assert KEY not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["kind"] for line in lines] == ["recorded"] * 5
    assert {line["upstream"] for line in lines} == {real.url}
    assert "[redacted]" in lines[0]["request"]["body"]["messages"][0]["content"]
    assert {"authorization", "x-api-key"}.isdisjoint(
        name for line in lines for name in line["request"]["headers"]
    )
    assert KEY in json.dumps(real.bodies()), "the real API hears what was said"


def test_an_api_that_is_away_is_a_clear_error_and_no_recording(tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"
    nobody = f"http://127.0.0.1:{ports.choose(0)}"
    with model_process(tmp_path, None, "--record", str(file), "--upstream", nobody) as passing:
        with pytest.raises(anthropic.InternalServerError, match="gave no answer"):
            asyncio.run(talk(passing.url))
        assert [(send["status"], send["outcome"]) for send in passing.sends()] == [(502, "refused")]
    assert file.read_text() == ""


def test_a_reply_that_broke_off_is_passed_on_as_that_and_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"
    with (
        model_server(SCRIPT) as real,
        model_process(tmp_path, None, "--record", str(file), "--upstream", real.url) as passing,
    ):
        real.fault("cut")
        with pytest.raises(Exception, match="incomplete chunked read"):
            asyncio.run(talk(passing.url))
        assert [send["outcome"] for send in passing.sends()] == ["broken-off"]
    assert file.read_text() == ""


@pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n"])
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(text)
    with pytest.raises(Refused) as refused:
        recordings.load(path)
    assert refused.value.code == "model-recording-invalid"
    assert [fault.pointer for fault in refused.value.problems] == (["/1"] if text else [])


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "orchestrator", "model-server", "--record", str(tmp_path / "r.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "model-server-options" in done.stderr) == (2, True)
