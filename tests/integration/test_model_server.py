"""The local model server as the official SDKs see it, in good replies and in each of its faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from orchestrator.modelserver.asked import Asked
from orchestrator.modelserver.script import Played, Turn
from tests.model_server import RunningModel, model_process, model_server

CALLS = {
    "text": "I look at the file first. " * 5,
    "calls": [
        {"name": "read_file", "arguments": {"path": "a.py", "note": 'Umlaut ä, emoji 🎈, quote " and \\'}},
        {"name": "run_command", "arguments": {"command": "pytest -q"}},
    ],
}
SCRIPT = {"conversations": [{"name": "fix", "turns": [CALLS, {"text": "Done."}]}]}
TOOL_NAMES = ("read_file", "run_command")
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}


@pytest.fixture
def model() -> Iterator[RunningModel]:
    with model_server(SCRIPT) as found:
        yield found


TLS = httpx2.create_ssl_context()  # takes longer to make than a test needs it


def claude(model: RunningModel, timeout: float = 30) -> anthropic.AsyncAnthropic:
    http = anthropic.DefaultAsyncHttpxClient(verify=TLS, timeout=timeout)
    return anthropic.AsyncAnthropic(
        api_key="key-of-a-test", base_url=model.url, max_retries=0, timeout=timeout, http_client=http
    )


def gpt(model: RunningModel, timeout: float = 30) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(verify=TLS, timeout=timeout)
    return openai.AsyncOpenAI(
        api_key="key-of-a-test", base_url=model.openai_url, max_retries=0, timeout=timeout, http_client=http
    )


MESSAGES: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "fix the bug"}],
    "tools": [{"name": name, "input_schema": SCHEMA} for name in TOOL_NAMES],
}
RESPONSES: dict[str, Any] = {
    "model": "gpt-5.2-codex",
    "input": "fix the bug",
    "tools": [
        {"type": "function", "name": name, "parameters": SCHEMA, "strict": False} for name in TOOL_NAMES
    ],
}
CHAT: dict[str, Any] = {
    "model": "gpt-5.2-codex",
    "messages": [{"role": "user", "content": "fix the bug"}],
    "tools": [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in TOOL_NAMES],
}


# ---- good replies


def test_messages_streams_text_and_calls_and_goes_on_with_their_results(model: RunningModel) -> None:
    async def talk() -> None:
        async with claude(model) as client:
            async with client.messages.stream(**MESSAGES) as stream:
                first = await stream.get_final_message()
            assert [block.type for block in first.content] == ["text", "tool_use", "tool_use"]
            assert first.content[0].text == CALLS["text"]
            assert first.content[1].input == CALLS["calls"][0]["arguments"]
            assert first.stop_reason == "tool_use"
            assert first.usage.input_tokens > 10
            assert first.usage.output_tokens > 20
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "ok"}
                for block in first.content
                if block.type == "tool_use"
            ]
            more = [
                {"role": "assistant", "content": first.to_dict()["content"]},
                {"role": "user", "content": results},
            ]
            messages = [*MESSAGES["messages"], *more]
            whole = await client.messages.create(**{**MESSAGES, "messages": messages})
            assert (whole.content[0].text, whole.stop_reason) == ("Done.", "end_turn")
            counted = await client.messages.count_tokens(model="m", messages=messages)
            assert counted.input_tokens > 10
            assert [one.id async for one in client.models.list()] == list(model.stage.models)

    asyncio.run(talk())
    assert [(send.conversation, send.turn, send.nth, send.outcome) for send in model.await_end()] == [
        ("fix", 0, 1, "complete"),
        ("fix", 1, 1, "complete"),
    ]


def test_messages_says_the_same_whole_as_in_a_stream(model: RunningModel) -> None:
    async def both() -> tuple[Any, Any]:
        async with claude(model) as client:
            whole = await client.messages.create(**MESSAGES)
            async with client.messages.stream(**MESSAGES) as stream:
                return whole, await stream.get_final_message()

    whole, streamed = asyncio.run(both())
    assert [block.to_dict(exclude_none=True) | {"id": ""} for block in whole.content] == [
        block.to_dict(exclude_none=True) | {"id": ""} for block in streamed.content
    ]
    assert whole.usage == streamed.usage


def test_responses_streams_items_and_goes_on_from_the_previous_one(model: RunningModel) -> None:
    async def talk() -> None:
        async with gpt(model) as client:
            async with client.responses.stream(**RESPONSES) as stream:
                kinds = [event.type async for event in stream]
                first = await stream.get_final_response()
            assert kinds[0] == "response.created"
            assert kinds[-1] == "response.completed"
            assert {"response.output_text.delta", "response.function_call_arguments.delta"} <= set(kinds)
            assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
            assert first.output_text == CALLS["text"]
            assert first.usage is not None
            assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
            results = [
                {"type": "function_call_output", "call_id": item.call_id, "output": "ok"}
                for item in first.output
                if item.type == "function_call"
            ]
            second = await client.responses.create(
                model="gpt-5.2-codex", previous_response_id=first.id, input=results, tools=RESPONSES["tools"]
            )
            assert (second.output_text, second.status) == ("Done.", "completed")
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="m", previous_response_id="resp_unknown", input="x")
            assert refused.value.code == "previous_response_not_found"
            given = [{"role": "user", "content": "fix the bug"}, *first.to_dict()["output"], *results]
            third = await client.responses.create(**{**RESPONSES, "input": given})
            assert third.output_text == "Done."

    asyncio.run(talk())
    assert [send.turn for send in model.await_end()] == [0, 1, None, 1]


def test_chat_streams_deltas_with_usage_at_the_end_and_goes_on(model: RunningModel) -> None:
    async def talk() -> None:
        async with gpt(model) as client:
            async with client.chat.completions.stream(
                **CHAT, stream_options={"include_usage": True}
            ) as stream:
                first = await stream.get_final_completion()
            message = first.choices[0].message
            assert message.content == CALLS["text"]
            assert [call.function.name for call in message.tool_calls or ()] == list(TOOL_NAMES)
            assert first.choices[0].finish_reason == "tool_calls"
            assert first.usage is not None
            assert first.usage.prompt_tokens > 10
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": "ok"}
                for call in message.tool_calls or ()
            ]
            said = {
                "role": "assistant",
                "content": message.content,
                "tool_calls": [call.to_dict() for call in message.tool_calls or ()],
            }
            messages = [*CHAT["messages"], said, *results]
            second = await client.chat.completions.create(**{**CHAT, "messages": messages})
            assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("Done.", "stop")
            assert [one.id async for one in client.models.list()] == list(model.stage.models)

    asyncio.run(talk())
    assert [send.turn for send in model.await_end()] == [0, 1]


def test_a_request_sent_again_gets_the_same_turn_again(model: RunningModel) -> None:
    async def twice() -> list[Any]:
        async with claude(model) as client:
            return [await client.messages.create(**MESSAGES) for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first.content[0] == second.content[0]
    assert [(send.turn, send.nth) for send in model.await_end()] == [(0, 1), (0, 2)]
    assert [turn for *_, turn in model.finished_twice()] == [0]


def test_a_preconnection_by_head_is_welcome(model: RunningModel) -> None:
    with httpx2.Client(trust_env=False) as client:
        assert client.head(model.url).status_code == 200
        assert client.post(f"{model.url}/v1/messages", json=MESSAGES).status_code == 401


# ---- the command


def test_the_command_serves_a_script_logs_each_send_and_ends_when_told(tmp_path: Path) -> None:
    with model_process(tmp_path, SCRIPT) as running:
        with httpx2.Client(trust_env=False, headers={"x-api-key": "key-of-a-test"}) as client:
            running.control("POST", "faults", {"kind": "rate-limit", "retry_after": 7})
            limited = client.post(f"{running.url}/v1/messages", json=MESSAGES, headers={"x-task-id": "t-1"})
            assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
            good = client.post(f"{running.url}/v1/messages", json=MESSAGES, headers={"x-task-id": "t-1"})
            assert good.json()["stop_reason"] == "tool_use"
        told = running.sends()
    assert running.process.returncode == 0
    written = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert written == told
    assert [(send["session"], send["fault"], send["status"], send["finished"]) for send in written] == [
        ("t-1", "rate-limit", 429, False),
        ("t-1", None, 200, True),
    ]
    assert "key-of-a-test" not in running.log.read_text()


def test_the_command_says_what_is_wrong_with_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"conversations": [{"turns": [{"txt": "Hello"}]}]}')
    words = [sys.executable, "-m", "orchestrator", "model-server", "--script", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/conversations/0/turns/0/txt" in done.stderr
    assert "model-script-invalid" in done.stderr


# ---- several at once, and strangers


def test_tasks_that_play_the_same_conversation_meet_its_faults_each_for_itself() -> None:
    turns = [{**CALLS, "faults": [{"kind": "overloaded"}]}]
    with model_server({"conversations": [{"turns": turns}]}) as model:

        async def send(client: httpx2.AsyncClient, task: str) -> int:
            headers = {"x-task-id": task, "x-api-key": "key"}
            return (await client.post(f"{model.url}/v1/messages", json=MESSAGES, headers=headers)).status_code

        async def both() -> list[int]:
            async with httpx2.AsyncClient(trust_env=False) as client:
                return [await send(client, task) for task in ("one", "two", "one", "two")]

        assert asyncio.run(both()) == [529, 529, 200, 200]
        assert [(send.session, send.nth) for send in model.await_end()] == [
            ("one", 1),
            ("two", 1),
            ("one", 2),
            ("two", 2),
        ]
        assert model.finished_twice() == []


def test_a_player_of_ones_own_decides_by_what_was_asked() -> None:
    class Echo:
        def play(self, asked: Asked, headers: Mapping[str, str]) -> Played:
            return Played("echo", asked.turn, Turn(text=f"{headers['x-task-id']}: {asked.latest}"))

    async def ask(url: str) -> str:
        async with anthropic.AsyncAnthropic(
            api_key="k", base_url=url, default_headers={"x-task-id": "t-7"}
        ) as client:
            return str((await client.messages.create(**MESSAGES)).content[0].text)

    with model_server(Echo()) as other:
        assert asyncio.run(ask(other.url)) == "t-7: fix the bug"


def test_what_is_no_http_is_hung_up_on_and_others_are_served_on(model: RunningModel) -> None:
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /" + b"a" * 400_000,
        b"POST /v1/",
    ):
        with socket.create_connection(("127.0.0.1", int(model.url.rpartition(":")[2]))) as raw:
            raw.sendall(nonsense)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(100) == b""
    with httpx2.Client(trust_env=False) as client:
        assert client.get(model.url).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"{", "not JSON"), (b"[]", "not a JSON object"), (b"{}", "messages"), (b'{"messages": [7]}', "object")],
)
def test_a_body_that_is_no_request_is_refused_and_logged(model: RunningModel, body: bytes, said: str) -> None:
    with httpx2.Client(trust_env=False, headers={"x-api-key": "k"}) as client:
        for path in ("messages", "chat/completions"):
            answer = client.post(f"{model.openai_url}/{path}", content=body)
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]
    assert [(send.outcome, send.status) for send in model.await_end()] == [("refused", 400)] * 2


def test_a_page_from_elsewhere_cannot_control_the_server(model: RunningModel) -> None:
    with httpx2.Client(trust_env=False) as client:
        simple = {"content-type": "text/plain"}  # what a browser sends without asking first
        answer = client.post(f"{model.url}/_control/faults", content=b'{"kind": "cut"}', headers=simple)
        assert answer.status_code == 415
        wrong = client.post(f"{model.url}/_control/faults", json={"kind": "cut", "tims": 2})
        assert (wrong.status_code, wrong.json()["problems"][0]["loc"]) == (422, [0, "tims"])
        assert client.get(f"{model.url}/_control/faults").json() == {"faults": []}


def test_a_server_that_ends_lets_go_of_those_who_wait(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def wait(url: str) -> None:
        try:
            httpx2.post(f"{url}/v1/messages", json=MESSAGES, headers={"x-api-key": "k"}, timeout=60)
        except httpx2.HTTPError as error:
            failed.append(error)

    log = tmp_path / "log.jsonl"
    with model_server(SCRIPT, log=log) as model:
        model.fault("hang")
        waiting = threading.Thread(target=wait, args=(model.url,))
        waiting.start()
        model.await_sends(1)
    waiting.join(10)
    assert [type(error) for error in failed] == [httpx2.ReadError]
    assert [json.loads(line)["outcome"] for line in log.read_text().splitlines()] == ["broken-off"]
