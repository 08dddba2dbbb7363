"""Is it doing its work? Each asks the service itself."""

from __future__ import annotations

import http.client
import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.local.service import Started

_SECONDS = 5.0
_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671, "postgresql": 5432}


def answers(port: int, path: str, *, host: str = "127.0.0.1") -> Callable[[Started], bool]:
    """GET gives 200."""

    def probe(_: Started) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    return probe


def reachable(host: str) -> str:
    """By what address a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up only


def says(pattern: str) -> Callable[[Started], bool]:
    """The pattern is found in what it has written since it started. For what has no door to knock at."""
    compiled = re.compile(pattern.encode())

    def probe(started: Started) -> bool:
        with started.log.open("rb") as log:
            log.seek(started.log_from)
            return compiled.search(log.read()) is not None

    return probe


def reach(what: str, url: str) -> str:
    """`host:port` of someone else's server. Raises Unavailable when it takes no connection."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise Unavailable(
            f"{what}-unreachable",
            f"Can't reach {what} at {host}:{port} ({error.strerror or error}), which the environment names.",
            "Start it, correct DATABASE_URL or CELERY_BROKER_URL, or unset them to use the embedded servers.",
        ) from error
    return f"{host}:{port}"
