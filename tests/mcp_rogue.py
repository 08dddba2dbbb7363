"""An MCP server that misbehaves as its first argument says; by hand, since no library would let it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOW = sys.argv[1]
BILLION = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/d0"}},
    "$defs": {
        **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)},
        "d60": {"type": "string", "pattern": "^(a+)+$"},
    },
}
PLAIN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
ROUND = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}


def tools() -> list[dict[str, Any]]:
    named = [("call", PLAIN)]
    if HOW == "lies":
        named += [
            ("bad name!", PLAIN),
            ("n" * 80, PLAIN),
            ("billion", BILLION),
            ("round", ROUND),
            ("no_schema", {"type": "object", "properties": {"a": {"type": "nonsense"}}}),
            ("large", {"type": "object", "description": "x" * 30_000}),
            ("away", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}}),
        ]
    if HOW == "many":
        named = [(f"tool{number}", PLAIN) for number in range(1000)]
    return [{"name": name, "description": "d" * 5000, "inputSchema": schema} for name, schema in named]


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def call(number: Any) -> None:
    if HOW == "hangs":
        time.sleep(600)
    if HOW == "dies":
        print("I die now", file=sys.stderr, flush=True)
        os._exit(3)
    if HOW == "dies once" and not Path("died").exists():
        Path("died").touch()
        os._exit(3)
    if HOW == "one endless line":
        while True:
            sys.stdout.write("x" * 65536)
    if HOW == "endless lines":
        while True:
            say({"method": "notifications/message", "params": {"level": "info", "data": "x" * 65536}})
    if HOW == "forks":
        while True:
            subprocess.Popen(["sleep", "600", sys.argv[2]])
    if HOW == "escapes":
        subprocess.Popen(["setsid", "tail", "-f", "/dev/null", sys.argv[2]])
    if HOW == "garbage":
        print("a banner\n\x00\xff{]\n{}\n[]\n" + '{"jsonrpc": "2.0", "id": 999, "result": {}}', flush=True)
    if HOW == "wrong result":
        say({"id": number, "result": {"content": "text"}})
        return
    say({"id": number, "result": {"content": [{"type": "text", "text": "ok"}]}})


if HOW == "never starts":
    time.sleep(600)
if HOW == "ends at once":
    print("no such option", file=sys.stderr)
    sys.exit(2)
for line in sys.stdin:
    asked = json.loads(line)
    method, number = asked.get("method"), asked.get("id")
    if method == "initialize":
        version = asked["params"]["protocolVersion"]
        info = {"name": "rogue", "version": "1"}
        say(
            {
                "id": number,
                "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info},
            }
        )
    elif method == "tools/list":
        say({"id": number, "result": {"tools": tools()}})
    elif method == "tools/call":
        call(number)
    elif number is not None:
        say({"id": number, "error": {"code": -32601, "message": "unknown"}})
