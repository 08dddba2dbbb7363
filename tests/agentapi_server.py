"""A coder/agentapi for tests: one agent in one conversation; its answers are held to its own description.

with agentapi_server(agent) as served:    # agent(message, say) is the agent: it works, and says what it did
    …  # served.url, served.messages, served.raw
"""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema

Agent = Callable[[str, Callable[[str], None]], None]
COPY = Path(__file__).parent / "data" / "agentapi-openapi.json"
DATA_VARIABLE = "ORCHESTRATOR_TEST_DATA"
"""A folder in which the whole description lies; without it the copy of what is used here counts."""


def description() -> dict[str, Any]:
    folder = os.environ.get(DATA_VARIABLE)
    whole = Path(folder) / "agentapi-openapi.json" if folder else COPY
    found: dict[str, Any] = json.loads((whole if whole.exists() else COPY).read_text())
    return found


class AgentApiServer(http.server.ThreadingHTTPServer):
    """`key`: required as a bearer token, as a proxy before it would. An agent that raises ends with an
    `agent_error`."""

    daemon_threads = True

    def __init__(self, agent: Agent, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.agent = agent
        self.key = key
        self.described = description()
        self.status = "stable"
        self.messages: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self.on_raw: Callable[[], object] = lambda: None
        self.faults: list[BaseException] = []
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.changed = threading.Condition()
        self.say("Ready.")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def check(self, value: Any, schema: Mapping[str, Any]) -> None:
        """Raises AssertionError in the test, by `faults`, when an answer isn't as described."""
        try:
            jsonschema.validate(value, {**schema, "components": self.described["components"]})
        except jsonschema.ValidationError as error:
            self.faults.append(error)
            raise

    def happen(self, name: str, data: dict[str, Any]) -> None:
        items = self.described["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
        self.check([{"event": name, "data": data, "id": len(self.log)}], items["schema"])
        with self.changed:
            self.log.append((name, data))
            self.changed.notify_all()

    def become(self, status: str) -> None:
        self.status = status
        self.happen("status_change", {"status": status, "agent_type": "custom"})

    def say(self, text: str, role: str = "agent") -> None:
        """The agent's last message is rewritten in place while it works."""
        if role == "agent" and self.messages and self.messages[-1]["role"] == "agent":
            self.messages[-1]["content"] = text
        else:
            self.messages.append({"id": len(self.messages), "role": role, "content": text, "time": now()})
        last = self.messages[-1]
        self.happen(
            "message_update",
            {"id": last["id"], "role": role, "message": last["content"], "time": last["time"]},
        )

    def take(self, message: str) -> None:
        self.say(_wrapped(message), "user")
        self.become("running")
        threading.Thread(target=self._work, args=(message,), daemon=True).start()

    def _work(self, message: str) -> None:
        try:
            self.agent(message, self.say)
        except Exception as error:  # noqa: BLE001 - whatever an agent does
            self.happen("agent_error", {"level": "error", "message": str(error), "time": now()})
        self.become("stable")


def now() -> str:
    return datetime.now(UTC).isoformat()


def _wrapped(text: str) -> str:
    """As it stands on a screen of 80 columns."""
    return "\n".join(line[at : at + 80] for line in text.splitlines() for at in range(0, len(line) or 1, 80))


class _Answering(http.server.BaseHTTPRequestHandler):
    server: AgentApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_let_in():
            return
        match self.path:
            case "/status":
                found = {"status": self.server.status, "agent_type": "custom", "transport": "pty"}
                self._answer(200, found)
            case "/messages":
                self._answer(200, {"messages": self.server.messages})
            case "/events":
                self._stream()
            case _:
                self._refuse(404, "there is no such path")

    def do_POST(self) -> None:
        if not self._is_let_in():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        described = self.server.described["paths"]["/message"]["post"]["requestBody"]["content"]
        self.server.check(body, described["application/json"]["schema"])
        if body["type"] == "raw":
            self.server.raw.append(body["content"])
            self.server.on_raw()
            self._answer(200, {"ok": True})
        elif self.server.status != "stable":
            self._refuse(500, "message can only be sent when the agent is waiting for user input")
        elif not body["content"].strip():
            self._refuse(500, "message must not be empty")
        else:
            self.server.take(body["content"].strip())
            self._answer(200, {"ok": True})

    def _is_let_in(self) -> bool:
        if self.server.key in {None, self.headers.get("Authorization", "").removeprefix("Bearer ")}:
            return True
        self._answer(401, {"title": "Unauthorized", "status": 401}, "application/problem+json")
        return False

    def _refuse(self, status: int, detail: str) -> None:
        problem = {"status": status, "title": "Refused", "detail": detail}
        self._answer(status, problem, "application/problem+json")

    def _answer(self, status: int, body: Any, kind: str = "application/json") -> None:
        described = self.server.described["paths"].get(self.path, {}).get(self.command.lower())
        if described is not None:
            answers = described["responses"]
            found = answers.get(str(status)) or answers["default"]
            self.server.check(body, found["content"][kind]["schema"])
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        at = 0
        try:
            while True:
                with self.server.changed:
                    self.server.changed.wait_for(lambda at=at: len(self.server.log) > at, 0.5)  # type: ignore[misc]
                    fresh = self.server.log[at:]
                for name, data in fresh:
                    at += 1
                    self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()
        except OSError:
            return
        finally:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def agentapi_server(agent: Agent, key: str | None = None) -> Iterator[AgentApiServer]:
    server = AgentApiServer(agent, key)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        assert server.faults == []
