from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke, Done, StopReason, Yielded
from orchestrator.engine import loop
from orchestrator.engine.ports import (
    CallAnnounced,
    CallCompleted,
    ModelError,
    ModelRequest,
    Reply,
    Stopped,
    StreamEvent,
    TextDelta,
    Usage,
)
from orchestrator.engine.providers.anthropic import AnthropicModel, Deadlines
from orchestrator.engine.tools import TOOLS
from tests.engine_world import FileJournal, FolderWorkspace, Wire, assignment
from tests.messages_server import (
    Answer,
    MessagesServer,
    call_block,
    closing,
    opening,
    serving,
    spelled,
    text_block,
)

REQUEST = ModelRequest(
    system="You are a test.",
    tools=[tool.schema() for tool in TOOLS.values()],
    messages=[{"role": "user", "content": [{"type": "text", "text": "Hello."}]}],
)
QUICK = Deadlines(timedelta(seconds=5), timedelta(seconds=5), timedelta(seconds=20))


def model(server: MessagesServer, deadlines: Deadlines = QUICK) -> AnthropicModel:
    return AnthropicModel("claude-sonnet-4-6", "sk-test", server.url, deadlines=deadlines)


def ask(server: MessagesServer, **how: Any) -> tuple[Reply, list[StreamEvent]]:
    heard: list[StreamEvent] = []
    return model(server, **how).reply(REQUEST, heard.append, Stop()), heard


def failure(answer: Answer, **how: Any) -> ModelError:
    with serving(answer) as server, pytest.raises(ModelError) as raised:
        ask(server, **how)
    assert len(server.requests) == 1, "it never sends twice"
    return raised.value


def test_a_streamed_reply_is_put_together_and_heard_as_it_comes() -> None:
    events = [
        opening(
            cache_read_input_tokens=7,
            cache_creation_input_tokens=3,
            cache_creation={"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 1},
        ),
        {"type": "ping"},
        *text_block(0, "I ", "read."),
        *call_block(1, "t1", "read_file", '{"pa', 'th": "a"}'),
        *call_block(2, "t2", "list_files"),
        {"type": "something_new", "index": 9},
        *closing(),
    ]
    with serving(Answer(events)) as server:
        reply, heard = ask(server)
    assert reply == Reply(
        content=(
            {"type": "text", "text": "I read."},
            {"type": "tool_use", "id": "t1", "name": "read_file", "input": {"path": "a"}},
            {"type": "tool_use", "id": "t2", "name": "list_files", "input": {}},
        ),
        stop_reason="tool_use",
        usage=Usage(10, 25, cache_read_tokens=7, cache_write_tokens=3, cache_write_hour_tokens=1),
        model="claude-sonnet-4-6",
        request_id="req_1",
    )
    assert heard == [
        TextDelta("I "),
        TextDelta("read."),
        CallAnnounced("read_file"),
        CallCompleted("t1", "read_file", {"path": "a"}),
        CallAnnounced("list_files"),
        CallCompleted("t2", "list_files", {}),
    ]


def test_the_request_carries_tools_cache_marks_and_no_retries() -> None:
    with serving(Answer([opening(), *text_block(0, "x"), *closing()])) as server:
        ask(server)
    headers, body = server.requests[0]
    assert body["stream"] is True
    assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert [tool["name"] for tool in body["tools"]] == list(TOOLS)
    assert "cache_control" not in json.dumps(REQUEST.messages)
    assert headers["x-stainless-retry-count"] == "0"


def test_thinking_goes_back_as_it_came() -> None:
    thinking: list[Mapping[str, Any]] = [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "xyz"}},
        {"type": "content_block_stop", "index": 0},
    ]
    with serving(Answer([opening(), *thinking, *text_block(1, "x"), *closing()])) as server:
        reply, _ = ask(server)
    assert reply.content[0] == {"type": "thinking", "thinking": "Hm.", "signature": "xyz"}


@pytest.mark.parametrize(
    ("status", "kind", "message", "error", "code", "retryable"),
    [
        (401, "authentication_error", "invalid x-api-key", ErrorClass.AUTH, "model-unauthorized", False),
        (403, "permission_error", "no", ErrorClass.AUTH, "model-unauthorized", False),
        (
            400,
            "invalid_request_error",
            "Your credit balance is too low",
            ErrorClass.AUTH,
            "model-billing",
            False,
        ),
        (404, "not_found_error", "model: x", ErrorClass.VALIDATION, "model-unknown", False),
        (429, "rate_limit_error", "slow down", ErrorClass.RATE_LIMIT, "model-rate-limited", True),
        (529, "overloaded_error", "Overloaded", ErrorClass.OVERLOADED, "model-overloaded", True),
        (529, "", "", ErrorClass.OVERLOADED, "model-overloaded", True),
        (500, "api_error", "oops", ErrorClass.OVERLOADED, "model-server-error", True),
        (504, "timeout_error", "late", ErrorClass.TIMEOUT, "model-timeout", True),
        (413, "request_too_large", "big", ErrorClass.CONTEXT_TOO_LONG, "context-too-long", False),
        (400, "invalid_request_error", "tools.0: no", ErrorClass.VALIDATION, "model-request-refused", False),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 215000 tokens > 200000 maximum",
            ErrorClass.CONTEXT_TOO_LONG,
            "context-too-long",
            False,
        ),
    ],
)
def test_each_status_has_its_meaning(
    status: int, kind: str, message: str, error: ErrorClass, code: str, retryable: bool
) -> None:
    raised = failure(Answer(status=status, error={"type": kind, "message": message}))
    assert (raised.error, raised.code, raised.retryable) == (error, code, retryable)
    assert message in raised.message
    assert "sk-test" not in raised.message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, timedelta(seconds=7)),
        ({"retry-after-ms": "1500", "retry-after": "2"}, timedelta(seconds=1.5)),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_the_server_s_wish_to_wait_is_passed_on(headers: dict[str, str], expected: timedelta | None) -> None:
    answer = Answer(status=429, error={"type": "rate_limit_error", "message": "x"}, headers=headers)
    assert failure(answer).retry_after == expected


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("overloaded_error", ErrorClass.OVERLOADED, "model-overloaded"),
        ("api_error", ErrorClass.OVERLOADED, "model-server-error"),
        ("rate_limit_error", ErrorClass.RATE_LIMIT, "model-rate-limited"),
        ("brand_new_error", ErrorClass.OVERLOADED, "model-server-error"),
    ],
)
def test_an_error_in_mid_stream_is_told_apart_by_its_type(kind: str, error: ErrorClass, code: str) -> None:
    event = {"type": "error", "error": {"type": kind, "message": "sorry"}}
    raised = failure(Answer([opening(), *text_block(0, "half")[:2], event]))
    assert (raised.error, raised.code, raised.retryable) == (error, code, True)
    assert "sorry" in raised.message


@pytest.mark.parametrize("then", ["drop", "end"])
def test_a_reply_that_is_cut_off_is_no_reply(then: str) -> None:
    raised = failure(Answer([opening(), *text_block(0, "half of it"), closing()[0]], then=then))
    assert raised.error == ErrorClass.NETWORK
    assert raised.code == ("model-stream-dropped" if then == "drop" else "model-stream-truncated")
    assert raised.retryable


@pytest.mark.parametrize(
    "wire",
    [
        "event: message_start\ndata: {not json\n\n",
        "event: message_start\ndata: [1, 2]\n\n",
        "event: message_start\ndata: 7\n\n",
        spelled({"type": "message_start"}),
        spelled({"type": "content_block_delta", "index": 5, "delta": {"type": "text_delta", "text": "x"}}),
        f"event: message_start\ndata: {'[' * 100_000}\n\n",
        f"event: message_start\ndata: {'[' * 100_000}{']' * 100_000}\n\n",
        f'event: message_start\ndata: {{"type":"message_start","x":{"[" * 700}{"]" * 700}}}\n\n',
        f'event: ping\ndata: {{"type":"ping","x":{"[" * 900}{"]" * 900}}}\n\n',
        "<html>a proxy's page</html>",
        "",
    ],
)
def test_garbage_is_a_retryable_error_and_never_text(wire: str) -> None:
    events = [opening(), wire] if wire else []
    raised = failure(Answer(events))
    assert raised.error == ErrorClass.NETWORK
    assert raised.code in {"model-garbled", "model-stream-truncated"}
    assert raised.retryable


def test_arguments_cut_off_at_the_output_limit_are_kept_as_text() -> None:
    events = [opening(), *call_block(0, "t", "write_file", '{"path": "a", "cont'), *closing("max_tokens")]
    with serving(Answer(events)) as server:
        reply, _ = ask(server)
    assert reply.content[0]["input"] == {"unparsed_json": '{"path": "a", "cont'}
    problem = TOOLS["write_file"].problem(reply.content[0]["input"])
    assert problem is not None
    assert "output limit" in problem


def test_what_neither_postgres_nor_utf8_can_hold_is_replaced() -> None:
    events = [opening(), *call_block(0, "t", "write_file", '{"path": "a\\u0000\\ud800"}'), *closing()]
    with serving(Answer(events)) as server:
        reply, _ = ask(server)
    path = reply.content[0]["input"]["path"]
    assert "\0" not in path
    path.encode()


@pytest.mark.parametrize(
    ("stop_reason", "error", "code"),
    [
        ("refusal", ErrorClass.CONTENT_REFUSED, "model-refused"),
        ("model_context_window_exceeded", ErrorClass.CONTEXT_TOO_LONG, "context-too-long"),
    ],
)
def test_some_ends_of_a_reply_are_errors(stop_reason: str, error: ErrorClass, code: str) -> None:
    raised = failure(Answer([opening(), *text_block(0, "I"), *closing(stop_reason)]))
    assert (raised.error, raised.code, raised.retryable) == (error, code, False)


@pytest.mark.parametrize("answer", [Answer(silent=True), Answer([opening()], then="hang")])
def test_silence_ends_at_the_read_deadline(answer: Answer) -> None:
    deadlines = Deadlines(timedelta(seconds=5), timedelta(milliseconds=200), timedelta(seconds=20))
    raised = failure(answer, deadlines=deadlines)
    assert (raised.error, raised.code, raised.retryable) == (ErrorClass.TIMEOUT, "model-timeout", True)


def test_pings_do_not_keep_a_reply_alive_for_ever() -> None:
    deadlines = Deadlines(timedelta(seconds=5), timedelta(seconds=5), timedelta(milliseconds=300))
    raised = failure(Answer([opening()], then="ping"), deadlines=deadlines)
    assert (raised.error, raised.code, raised.retryable) == (ErrorClass.TIMEOUT, "model-deadline", True)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ModelError) as raised:
            AnthropicModel("m", "k", url, deadlines=QUICK).reply(REQUEST, lambda _: None, Stop())
    assert (raised.value.error, raised.value.code) == (ErrorClass.NETWORK, "model-unreachable")


def stopping(server: MessagesServer, stop: Stop, reason: StopReason) -> threading.Thread:
    """Sets the stop as soon as the server is in the middle of its answer."""

    def wait_and_set() -> None:
        server.speaking.wait(10)
        stop.set(reason)

    thread = threading.Thread(target=wait_and_set)
    thread.start()
    return thread


@pytest.mark.parametrize("answer", [Answer(silent=True), Answer([opening()], then="hang")])
def test_a_stop_closes_the_connection_at_once(answer: Answer) -> None:
    stop = Stop()
    with serving(answer) as server:
        setter = stopping(server, stop, StopReason.CANCEL)
        with pytest.raises(Stopped):
            model(server, Deadlines(overall=timedelta(seconds=60))).reply(REQUEST, lambda _: None, stop)
        assert server.gone.wait(10)
        setter.join()
    assert len(server.requests) == 1


def work(server: MessagesServer, path: Path, wire: Wire) -> object:
    return loop.work(
        assignment(agent_type="engine"),
        wire,
        model=model(server),
        journal=FileJournal(path / "journal"),
        workspace=FolderWorkspace(path / "workspace"),
    )


WRITE = Answer([opening(), *call_block(0, "t1", "write_file", '{"path": "a", "content": "b"}'), *closing()])
FINISH = Answer([opening(), *call_block(0, "t2", "attempt_completion", '{"summary": "Done."}'), *closing()])


def test_a_whole_step_over_http(tmp_path: Path) -> None:
    wire = Wire()
    with serving(WRITE, FINISH) as server:
        assert work(server, tmp_path, wire) == Done("Done.")
    assert (tmp_path / "workspace" / "a").read_text() == "b"
    assert len(server.requests) == 2
    costs = [data["cost_usd"] for kind, data in wire.notes if kind == "turn"]
    assert costs == ["0.000405", "0.000405"]


def test_an_error_of_the_model_is_a_verdict_and_the_next_claim_goes_on_after_the_last_turn(
    tmp_path: Path,
) -> None:
    dropped = Answer([opening()], then="drop")
    with serving(WRITE, dropped, FINISH) as server:
        broke = work(server, tmp_path, Wire())
        assert isinstance(broke, Broke)
        assert (broke.code, broke.retryable) == ("model-stream-dropped", True)
        assert work(server, tmp_path, Wire()) == Done("Done.")
        sent = [[message["role"] for message in body["messages"]] for _, body in server.requests]
    assert sent == [["user"], ["user", "assistant", "user"], ["user", "assistant", "user"]]


def test_a_reply_cut_short_by_a_stop_leaves_no_trace(tmp_path: Path) -> None:
    wire = Wire()
    with serving(Answer([opening(), *text_block(0, "half")], then="hang"), FINISH) as server:
        setter = stopping(server, wire.stop, StopReason.SHUTDOWN)
        assert work(server, tmp_path, wire) == Yielded(StopReason.SHUTDOWN)
        setter.join()
        assert FileJournal(tmp_path / "journal").load().entries == ()
        assert work(server, tmp_path, Wire()) == Done("Done.")


def test_a_soft_stop_waits_for_the_reply_which_nobody_pays_for_again(tmp_path: Path) -> None:
    wire = Wire()
    with serving(WRITE, FINISH) as server:
        setter = stopping(server, wire.stop, StopReason.PAUSE)
        assert work(server, tmp_path, wire) == Yielded(StopReason.PAUSE)
        setter.join()
        assert (tmp_path / "workspace" / "a").read_text() == "b"
        assert work(server, tmp_path, Wire()) == Done("Done.")
    assert len(server.requests) == 2
