"""A git server on loopback, by https, that wants a password: git's own behind Python's."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

USER = "ci"
PASSWORD = "p4ss:w0rd/of the test"


@dataclass
class GitServer:
    """`url` is where the repositories of `root` are; `authority` the file with the certificate to trust."""

    root: Path
    authority: Path
    port: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and user of each request; None: it showed no password, or a wrong one."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def serving(root: Path, folder: Path) -> Iterator[GitServer]:
    """Until left. `folder` is for the certificate."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
    subprocess.run(
        [
            *("openssl", *words, "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    found = GitServer(root, certificate)

    class Bound(_Handler):
        server_of = found

    with ThreadingHTTPServer(("127.0.0.1", 0), Bound) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_of: GitServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        pass

    def _user(self) -> str | None:
        scheme, _, shown = self.headers.get("authorization", "").partition(" ")
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return USER if (scheme, shown) == ("Basic", wanted) else None

    def _serve(self) -> None:
        parts, user = urlsplit(self.path), self._user()
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server_of.asked.append((parts.path, user))
        if user is None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env={
                "PATH": os.environ["PATH"],
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_PROJECT_ROOT": str(self.server_of.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "REMOTE_USER": user,
            },
            capture_output=True,
            check=True,
        )
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest)
