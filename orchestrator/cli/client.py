"""The API's client: problems become errors, lost connections are retried, streams are resumed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from orchestrator.cli.terminal import say
from orchestrator.core.errors import (
    Conflict,
    Denied,
    OrchestratorError,
    Problem,
    Refused,
    Unavailable,
    Unknown,
)

_KINDS: Final[Mapping[int, type[OrchestratorError]]] = {
    401: Denied,
    403: Denied,
    404: Unknown,
    409: Conflict,
    503: Unavailable,
}
_TRIES: Final = (0.2, 0.5, 1.0)
_PATIENCE_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 30.0
"""The server says something every ten."""


class Client:
    """Raises OrchestratorError for all that can go wrong."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        host = urlsplit(url).hostname or ""
        headers = {"User-Agent": f"orchestrator-cli/{version('orchestrator')}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(75.0, connect=5.0),
            # No proxy stands between a machine and itself.
            trust_env=host not in {"127.0.0.1", "localhost", "::1"},
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """A resource as JSON; parameters that are None are left out."""
        return self._send("GET", path, parameters=parameters).json()

    def text(self, path: str, accept: str, **parameters: Any) -> bytes:
        return self._send("GET", path, parameters=parameters, headers={"Accept": accept}).content

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Sent with one Idempotency-Key however often it must be tried, so that it is done once."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._send("POST", path, body=body or {}, headers=headers).json()

    def _send(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        wanted = {name: value for name, value in (parameters or {}).items() if value is not None}
        for pause in (*_TRIES, None):
            try:
                answer = self._http.request(method, path, params=wanted, json=body, headers=headers)
            except UnicodeEncodeError:
                # Bytes of the command line that are no text.
                raise Refused(
                    "option-invalid",
                    "What was given is not UTF-8.",
                    "Write it in the terminal's own characters.",
                ) from None
            except httpx2.ConnectError as error:
                # Nothing listens: that is soon said, and not cured by asking again.
                raise self._unreachable(error) from error
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                if pause is None or isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
                    raise self._unreachable(error) from error
            else:
                if answer.is_success:
                    return answer
                problem = self._problem(answer)
                if pause is None or not problem.retryable:
                    raise problem
            time.sleep(pause)
        raise AssertionError

    @contextmanager
    def _streamed(self, path: str, parameters: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        timeout = httpx2.Timeout(5.0, read=_SILENCE_SECONDS)
        headers = {"Accept": "text/event-stream"}
        with self._http.stream("GET", path, params=parameters, headers=headers, timeout=timeout) as answer:
            if answer.status_code >= httpx2.codes.BAD_REQUEST:
                answer.read()
                raise self._problem(answer)
            yield answer

    def follow(self, path: str, *, after: int = 0, **parameters: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Pairs of event and data, ending with `end`.

        A dropped connection is resumed by number, so that nothing is missed or told twice.
        """
        wanted = {name: value for name, value in parameters.items() if value is not None}
        lost_at: float | None = None
        heard = False
        while True:
            try:
                with self._streamed(path, {**wanted, "after": after}) as answer:
                    if lost_at is not None:
                        say(f"… reconnected after {time.monotonic() - lost_at:.0f} s (0 events missed)")
                        lost_at = None
                    heard = True
                    for found in httpx2.EventSource(answer):
                        if not found.data:
                            continue
                        data = json.loads(found.data)
                        after = max(after, int(data.get("seq", after)))
                        yield found.event, data
                        if found.event == "end":
                            return
            except (httpx2.TransportError, Unavailable) as error:
                if not heard:
                    raise error if isinstance(error, Unavailable) else self._unreachable(error) from error
                if lost_at is None:
                    say("… connection lost; the task goes on, and so does this when the API is back")
                    lost_at = time.monotonic()
                if time.monotonic() - lost_at > _PATIENCE_SECONDS:
                    raise self._unreachable(error) from error
            time.sleep(_AGAIN_SECONDS)

    def _problem(self, answer: httpx2.Response) -> OrchestratorError:
        try:
            body = answer.json()
            faults = tuple(Problem(one["pointer"], one["code"], one["detail"]) for one in body["errors"])
            hint = "\n".join(
                f"{action['label']}: {action['cli']}" if "cli" in action else action["label"]
                for action in body["next_actions"]
            )
            code, message, retryable = body["code"], body["detail"], body["retryable"]
        except (ValueError, KeyError, TypeError):
            return Unavailable(
                "not-our-api",
                f"{self.url} answered {answer.status_code}, but not as this API does.",
                "See what runs there, or name another address: --api-url",
            )
        kind = _KINDS.get(answer.status_code, Refused if answer.status_code < 500 else OrchestratorError)  # noqa: PLR2004
        return kind(code, message, hint, problems=faults, retryable=retryable)

    def _unreachable(self, error: Exception) -> Unavailable:
        why = str(error).partition("]")[2].strip() or str(error) or type(error).__name__
        return Unavailable(
            "api-unreachable",
            f"Can't reach the API at {self.url} ({why.rstrip('.')}).",
            "Start it:   orchestrator up            Use another:  --api-url / ORCHESTRATOR_API_URL",
        )
