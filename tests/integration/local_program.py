"""Stands in for `python -m orchestrator` in tests about how processes are kept, not what they do.

Takes the same verbs. A worker writes what it was given into its log and has a child, as Celery's pool does.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
import time
from pathlib import Path


class _Fine(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def main(verb: str, arguments: list[str]) -> None:
    match verb:
        case "db":
            print("1 migration applied")
            return
        case "api" | "flower" | "gateway":
            print(verb, "with", os.environ.get("ANTHROPIC_API_KEY", "no key"), flush=True)
            port = int(arguments[arguments.index("--port") + 1])
            _let_a_stranger_take(verb, port)
            http.server.HTTPServer(("127.0.0.1", port), _Fine).serve_forever()
        case "beat":
            print("beat: Starting...", flush=True)
        case "worker":
            if "ORCHESTRATOR_DATABASE_URL" not in os.environ:
                raise SystemExit("no database")
            signal.signal(signal.SIGTERM, _slowly if os.environ.get("SLOW_WORKERS") else _ended)
            if os.fork():
                key = os.environ.get("ANTHROPIC_API_KEY", "no key")
                print(" ".join(arguments), "with", key, "is ready.", flush=True)
    while True:
        time.sleep(60)


def _let_a_stranger_take(verb: str, port: int) -> None:
    """The first time, where STRANGERS names a folder: its server is on the port before ours is."""
    mark = Path(os.environ.get("STRANGERS", "/nonexistent")) / verb
    if not mark.parent.exists() or mark.exists():
        return
    mark.write_text(str(port))
    ready, told = os.pipe()
    if os.fork():
        os.read(ready, 1)
        raise SystemExit(f"somebody listens on {port}")
    server = http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    os.write(told, b"!")
    server.serve_forever()


def _ended(_: int, __: object) -> None:
    sys.exit()


def _slowly(_: int, __: object) -> None:
    time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
