"""A gateway that refuses every call with a code of its own, in the words and the form of the real one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.gateway.dialects import CALLS, MESSAGES
from orchestrator.gateway.refusals import refuse


class Refusing(http.server.ThreadingHTTPServer):
    """`calls`: how many it has refused."""

    daemon_threads = True

    def __init__(self, code: str, message: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.code, self.message = code, message
        self.calls = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answering(http.server.BaseHTTPRequestHandler):
    server: Refusing
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls += 1
        dialect = next((each for each in CALLS if each.path == self.path.partition("?")[0]), MESSAGES)
        answer = refuse(dialect, self.server.code, self.server.message)
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name.decode(), value.decode())
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def refusing_gateway(code: str, message: str) -> Iterator[Refusing]:
    with Refusing(code, message) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
