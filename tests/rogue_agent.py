"""An agent's program that misbehaves, by hand, since no library would.

    rogue_agent.py acp|claude|aider|agentapi HOW

Each repairs sums.py and says that it is done, unless what it does before or instead of that is its end.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPEAKS, HOW = sys.argv[1:3]
OUT = sys.stdout.buffer
SESSION = "session-1"
DEEP = 100_000
LEGAL_DEPTH = 800
"""As deep as Python still reads."""


def write(data: bytes) -> None:
    OUT.write(data + b"\n")
    OUT.flush()


def send(message: object) -> None:
    write(json.dumps(message).encode())


def heard() -> Iterator[dict[str, Any]]:
    for line in sys.stdin.buffer:
        yield json.loads(line)


def repair() -> None:
    path = Path("sums.py")
    path.write_text(path.read_text().replace("a - b", "a + b"))


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


def fill() -> None:
    """As many files of its HOME as a test's machine bears, and waits to be ended for them."""
    for number in range(200):
        (Path.home() / str(number)).write_bytes(b"x" * 200_000)
    time.sleep(300)


def leave() -> None:
    """Ends, but for a child that holds the output open."""
    if os.fork():
        os._exit(3)
    time.sleep(300)


def live_on() -> None:
    OUT.close()
    os.close(1)
    time.sleep(300)


def endless(data: bytes) -> None:
    while True:
        OUT.write(data)


# --- the Agent Client Protocol ----------------------------------------------------------------------------


def update(session: object = SESSION, **told: Any) -> None:
    send({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": told}})


def say(text: str) -> None:
    update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": text})


def tool(call_id: object, title: object = "look", **more: Any) -> None:
    update(sessionUpdate="tool_call", toolCallId=call_id, title=title, kind="other", **more)


def ask(number: object, session: object = SESSION, **call: Any) -> None:
    options = [{"optionId": "yes", "name": "Yes", "kind": "allow_once"}]
    params = {"sessionId": session, "toolCall": {"toolCallId": "t", **call}, "options": options}
    send({"jsonrpc": "2.0", "id": number, "method": "session/request_permission", "params": params})


def acp_prompt(number: object) -> None:  # noqa: PLR0912 - a table
    bad: Any
    match HOW:
        case "wrong types":
            for bad in (7, None, [], {}, "x", True, [[1]]):
                update(sessionUpdate=bad)
                update(sessionUpdate="tool_call", toolCallId=bad, title=bad, content=bad, rawInput=bad)
                update(sessionUpdate="plan", entries=bad)
                update(bad, sessionUpdate="agent_message_chunk", content=bad)
                send({"jsonrpc": "2.0", "method": bad, "params": bad})
                send({"jsonrpc": "2.0", "method": "session/update", "params": bad})
                send({"jsonrpc": "2.0", "id": bad, "method": "session/request_permission", "params": bad})
                send({"jsonrpc": "2.0", "id": bad, "method": "fs/read_text_file", "params": bad})
                send(bad)
        case "deep nesting":
            write(b'{"a":' * DEEP)
            write(b"[" * DEEP + b"]" * DEEP)
            tool("deep", rawInput=nested(LEGAL_DEPTH), _meta=nested(LEGAL_DEPTH))
            ask(5, rawInput=nested(LEGAL_DEPTH))
        case "huge ids":
            tool("i" * 2_000_000, "t" * 2_000_000)
            ask("i" * 2_000_000)
            write(b'{"jsonrpc": "2.0", "id": ' + b"9" * 10_000 + b', "result": 1}')
        case "NUL and halves of characters":
            tool("\0\ud800", "\0\ud800", rawInput={"\0\ud800": "\0\ud800", "n": float("nan")})
            update(sessionUpdate="tool_call_update", toolCallId="\0\ud800", status="failed")
            say("\0\ud800")
            sys.stderr.write("\0")
        case "no UTF-8":
            write(b'{"jsonrpc": "2.0", "method": "session/update\xff\xfe"}')
            write(b"\xff" * 1000)
        case "a stranger's session":
            update(
                "another", sessionUpdate="agent_message_chunk", content={"type": "text", "text": "NOT MINE"}
            )
            ask(9, "another", kind="execute")
        case "replies to nothing":
            for unasked in (number, 10**6, -1, "x", None, [], {}, 1.5):
                if unasked != number:
                    send({"jsonrpc": "2.0", "id": unasked, "result": {"stopReason": "end_turn"}})
                    send({"jsonrpc": "2.0", "id": unasked, "error": "no"})
        case "a reply of another type":
            send({"jsonrpc": "2.0", "id": number, "result": 7})
            return
        case "an error of another type":
            send({"jsonrpc": "2.0", "id": number, "error": ["no\0", nested(3)]})
            return
        case "closes its output":
            live_on()
        case "leaves a child":
            leave()
        case "files without end":
            fill()
        case "an endless line":
            endless(b"x" * 65536)
        case "a flood of tools":
            for at in range(10**9):
                tool(f"t{at}", rawInput={"text": "x" * 200})
        case "a flood of words":
            while True:
                say("word ")
        case "a flood of meta":
            while True:
                update(sessionUpdate="usage", _meta={"x": "y" * 4000})
        case "a flood of requests":
            for at in range(10**9):
                ask(at, kind="execute")
        case "a flood of complaints":
            while True:
                sys.stderr.write("complaint\n" * 1000)
        case "a flood of nothing":
            endless(b"{}\n" * 10_000)
    repair()
    say("Repaired.")
    send({"jsonrpc": "2.0", "id": number, "result": {"stopReason": "end_turn"}})


def acp() -> None:
    for message in heard():
        result: Any = {}
        match message.get("method"):
            case "initialize":
                result = {"protocolVersion": 1, "agentCapabilities": {}}
            case "session/new":
                result = {"sessionId": SESSION}
                if HOW == "a session without a name":
                    result = {"sessionId": 7}
                if HOW == "a session whose name can't be kept":
                    result = {"sessionId": "a\0b"}
            case "session/prompt":
                acp_prompt(message["id"])
                continue
            case None:
                continue
        if "id" in message:
            send({"jsonrpc": "2.0", "id": message["id"], "result": result})


# --- Claude Code -------------------------------------------------------------------------------------------


def assistant(*blocks: object) -> None:
    send({"type": "assistant", "message": {"role": "assistant", "model": "m", "content": list(blocks)}})


def called(call_id: object, name: object, arguments: object) -> None:
    assistant({"type": "tool_use", "id": call_id, "name": name, "input": arguments})


def hook(number: object, arguments: object) -> None:
    asked = {"subtype": "hook_callback", "callback_id": "hook_0", "tool_use_id": "t"}
    given = {"tool_name": "Bash", "tool_input": arguments, "hook_event_name": "PreToolUse"}
    send({"type": "control_request", "request_id": number, "request": {**asked, "input": given}})


def claude_prompt() -> None:  # noqa: PLR0912 - a table
    match HOW:
        case "lines that are no messages":
            for line in (b"{", b"[]", b"7", b"\xff\xfe{}", b"{" * 1000, b'{"a":' * DEEP, b"\0"):
                write(line)
            send({"type": "control_response"})
            send({"type": "control_response", "response": {"request_id": "none", "subtype": "error"}})
            send({"type": "control_cancel_request", "request_id": "none"})
        case "wrong types":
            send({"type": "assistant", "message": 7})
        case "a request without a name":
            send({"type": "control_request"})
        case "an unhashable name":
            send({"type": "control_response", "response": {"request_id": []}})
        case "an unknown block":
            assistant({"type": "tool_use"})
        case "deep nesting":
            called("t", "Bash", nested(LEGAL_DEPTH))
            hook("h", nested(LEGAL_DEPTH))
        case "huge ids":
            called("i" * 2_000_000, "n" * 2_000_000, {"x": "y" * 2_000_000})
        case "NUL and halves of characters":
            called("\0\ud800", "\0\ud800", {"\0\ud800": "\0\ud800", "n": float("nan")})
            assistant({"type": "text", "text": "\0\ud800"})
        case "closes its output":
            live_on()
        case "leaves a child":
            leave()
        case "an endless line":
            endless(b"x" * 65536)
        case "a flood of tools":
            for at in range(10**9):
                called(f"t{at}", "Bash", {"command": "x" * 200})
        case "a flood of words":
            delta = {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "word "},
            }
            while True:
                send({"type": "stream_event", "uuid": "u", "session_id": SESSION, "event": delta})
        case "a flood of requests":
            for at in range(10**9):
                hook(str(at), {"command": "true"})
        case "a flood of transcripts":
            path = f"{os.environ['CLAUDE_CONFIG_DIR']}/projects/-workspace/{SESSION}.jsonl"
            for at in range(10**9):
                entry = {"type": "user", "uuid": str(at), "text": "x" * 10_000}
                send({"type": "transcript_mirror", "filePath": path, "entries": [entry]})
        case "a flood of complaints":
            while True:
                sys.stderr.write("complaint\n" * 1000)
        case "a flood of nothing":
            endless(b'{"type": "nothing"}\n' * 10_000)
    repair()
    assistant({"type": "text", "text": "Repaired."})
    told = {"duration_ms": 1, "duration_api_ms": 1, "num_turns": 1, "session_id": SESSION}
    send({"type": "result", "subtype": "success", "is_error": False, "result": "Repaired.", **told})


def claude() -> None:
    for message in heard():
        if message["type"] == "control_request":
            able = {"hook_on_failure_supported": True, "hooks_applied": True}
            answer = {"subtype": "success", "request_id": message["request_id"], "response": able}
            send({"type": "control_response", "response": answer})
        elif message["type"] == "user":
            claude_prompt()


# --- Aider -------------------------------------------------------------------------------------------------


def aider() -> None:
    match HOW:
        case "an endless line":
            endless(b"x" * 65536)
        case "a flood of lines":
            endless(b"line\n" * 10_000)
        case "a flood of complaints":
            while True:
                sys.stderr.write("complaint\n" * 1000)
        case "no UTF-8":
            write(b"\xff\xfe\0" * 1000)
        case "closes its output":
            repair()
            live_on()
        case "leaves a child":
            repair()
            leave()
    repair()


# --- coder/agentapi ----------------------------------------------------------------------------------------


class AgentApi(http.server.BaseHTTPRequestHandler):
    """Has been given its message when somebody has posted one, and has then come to rest."""

    protocol_version = "HTTP/1.1"
    given: str | None = None

    def do_GET(self) -> None:
        match self.path:
            case "/status":
                self.answer({"status": "stable"})
            case "/messages":
                said = {"id": 2, "role": "agent", "content": "Repaired."}
                given = [{"id": 1, "role": "user", "content": AgentApi.given}, said]
                self.answer({"messages": [7, None, *(given if AgentApi.given else [])]})
            case "/events":
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.tell()

    def do_POST(self) -> None:
        AgentApi.given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["content"]
        if (found := re.search(r"Your working folder is (\S+): go there", AgentApi.given)) is not None:
            os.chdir(found[1])
            repair()
        self.answer({"ok": True})

    def answer(self, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def tell(self) -> None:
        bad: Any
        match HOW:
            case "an endless event":
                while True:
                    self.wfile.write(b"data: " + b"x" * 65536 + b"\n")
            case "an endless line":
                while True:
                    self.wfile.write(b"x" * 65536)
            case "a flood of events":
                for at in range(10**9):
                    self.event("message_update", {"id": at, "role": "agent", "message": "x" * 500_000})
            case "deep nesting":
                self.wfile.write(b"data: " + b"[" * DEEP + b"\n\n")
            case "wrong types":
                for bad in (7, None, [], {}, "x\0\ud800", [[1]]):
                    self.event("message_update", bad)
                    self.event("message_update", {"id": bad, "role": "agent", "message": bad})
                    self.event("status_change", {"status": bad})
                    self.event("agent_error", {"level": bad, "message": bad})
        self.event("status_change", {"status": "stable"})
        time.sleep(300)

    def event(self, name: str, data: object) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def agentapi() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), AgentApi)
    send(server.server_address[1])
    server.serve_forever()


if __name__ == "__main__":
    {"acp": acp, "claude": claude, "aider": aider, "agentapi": agentapi}[SPEAKS]()
