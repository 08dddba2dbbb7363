"""A real HTTP server on loopback that speaks the Messages API's stream, and misbehaves when told to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Event = Mapping[str, Any] | str
"""An event as JSON, or raw text to put on the wire."""
Server = TypeVar("Server", bound="MessagesServer")


@dataclass
class Answer:
    """One reply: a status with an error body, or a stream of events and what comes after them."""

    events: Sequence[Event] = ()
    status: int = 200
    error: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    then: str = "end"
    """`end` the stream properly, `drop` the connection, `hang` in silence, or `ping` for ever."""
    silent: bool = False
    """Doesn't even send headers."""


class MessagesServer(ThreadingHTTPServer):
    """Answers the nth request with the nth answer, keeps every request; `gone`: a client hung up."""

    daemon_threads = True

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.requests: list[tuple[Mapping[str, str], Mapping[str, Any]]] = []
        self.gone = threading.Event()
        self.speaking = threading.Event()
        self.closing = threading.Event()

    def choose(self, _headers: Mapping[str, str]) -> Answer:
        """What is answered to the request that was kept last."""
        return self.answers[min(len(self.requests), len(self.answers)) - 1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: MessagesServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((dict(self.headers), body))
        answer = self.server.choose(dict(self.headers))
        self.close_connection = True
        if answer.silent:
            self._hang()
        elif answer.error is not None:
            self._refuse(answer)
        else:
            self._stream(answer)

    def _refuse(self, answer: Answer) -> None:
        body = json.dumps({"type": "error", "error": answer.error}).encode()
        self.send_response(answer.status)
        for name, value in {
            "content-type": "application/json",
            "request-id": "req_1",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {
            "content-type": "text/event-stream",
            "request-id": "req_1",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in answer.events:
            self._chunk(event if isinstance(event, str) else spelled(event))
        self.server.speaking.set()
        match answer.then:
            case "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
            case "hang":
                self._hang()
            case "ping":
                self._ping()
            case _:
                self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _hang(self) -> None:
        """Until the client hangs up, which a read then sees, or the server closes."""
        self.server.speaking.set()
        self.connection.settimeout(0.05)
        while not self.server.closing.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.server.gone.set()

    def _ping(self) -> None:
        try:
            while not self.server.closing.wait(0.02):
                self._chunk(spelled({"type": "ping"}))
        except OSError:
            self.server.gone.set()

    def log_message(self, *_: object) -> None:
        pass


def spelled(event: Mapping[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def opening(**usage: Any) -> Event:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1, **usage},
    }
    return {"type": "message_start", "message": message}


def text_block(index: int, *pieces: str) -> list[Event]:
    return [
        {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": index},
    ]


def call_block(index: int, call_id: str, name: str, *pieces: str) -> list[Event]:
    block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *(
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": index},
    ]


def closing(stop_reason: str = "tool_use", **usage: int) -> list[Event]:
    return [
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            "usage": {"output_tokens": 25, **usage},
        },
        {"type": "message_stop"},
    ]


@contextmanager
def serving(*answers: Answer) -> Iterator[MessagesServer]:
    with serving_with(MessagesServer(answers)) as server:
        yield server


@contextmanager
def serving_with(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
