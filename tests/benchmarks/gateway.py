"""What the gateway adds to the first byte of a model's reply: the same request straight to the provider and
through the gateway, by turns, in one run.

The provider is a process of its own that answers at once, so that what is measured is the gateway. Run as a
program, this file is that provider.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import httpx2

from orchestrator.core.assignment import ModelAccess
from orchestrator.local import ports, probes
from orchestrator.local.service import Service, StopOrder
from tests.benchmarks.installation import REPOSITORY, Installation, installed
from tests.integration.gateway_server import MODEL, issue
from tests.integration.ledger import Ledger, opened, step
from tests.messages_server import closing as last_events, opening, spelled, text_block

REQUESTS: Final = 300
WARM: Final = 20
BODY_KIB: Final = 100
"""About as long as a request of a coding agent that has worked for a while."""


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """Milliseconds from the send to the first byte of the reply's body; same places belong together."""

    direct: list[float]
    through: list[float]

    @property
    def added(self) -> list[float]:
        return [slow - fast for fast, slow in zip(self.direct, self.through, strict=True)]


def measure(requests: int = REQUESTS) -> FirstBytes:
    with installed() as here:
        provider, gateway = ports.choose(0), ports.choose(0)
        here.run(_provider(here, provider), _gateway(here, gateway, provider))
        with closing(_Rows(opened(here.database_url))) as rows:
            token = rows.token()
            access = ModelAccess(f"http://127.0.0.1:{gateway}", token)
            return _compare(f"http://127.0.0.1:{provider}", access, requests)


class _Rows:
    """A claim that holds for as long as is measured."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def token(self) -> str:
        ref = self._ledger.task("t", step("a"), budget={"max_cost_usd": "100000"})["a"]
        return issue(self._ledger, self._ledger.take(ref, lease=timedelta(hours=1)))

    def close(self) -> None:
        self._ledger.engine.dispose()


def _compare(provider: str, access: ModelAccess, requests: int) -> FirstBytes:
    found = FirstBytes([], [])
    text = "x" * 1024
    body = json.dumps(
        {
            "model": MODEL,
            "max_tokens": 1000,
            "stream": True,
            "messages": [{"role": "user", "content": text} for _ in range(BODY_KIB)],
        }
    ).encode()
    headers = {"content-type": "application/json", "x-api-key": access.token}
    with httpx2.Client(headers=headers, timeout=30, trust_env=False) as client:
        for number in range(requests + WARM):
            for url, times in ((provider, found.direct), (access.base_url, found.through)):
                took = _first_byte(client, f"{url}/v1/messages", body)
                if number >= WARM:
                    times.append(took)
    return found


def _first_byte(client: httpx2.Client, url: str, body: bytes) -> float:
    began = time.perf_counter()
    with client.stream("POST", url, content=body) as response:
        chunks = response.iter_raw()
        next(chunks)
        took = (time.perf_counter() - began) * 1000
        assert response.status_code == 200, response.read()
        for _ in chunks:
            pass
    return took


def _provider(here: Installation, port: int) -> Service:
    return Service(
        name="provider",
        kind="provider",
        argv=(sys.executable, "-m", "tests.benchmarks.gateway", str(port)),
        ready=probes.answers(port, "/"),
        stop_order=StopOrder.API,
        folder=REPOSITORY,
        env=here.environment,
    )


def _gateway(here: Installation, port: int, provider: int) -> Service:
    return Service(
        name="gateway",
        kind="gateway",
        argv=(sys.executable, "-m", "orchestrator", "gateway", "--port", str(port)),
        ready=probes.answers(port, "/readyz"),
        stop_order=StopOrder.GATEWAY,
        folder=REPOSITORY,
        env={
            **here.environment,
            "ANTHROPIC_API_KEY": "a-key-of-the-benchmark",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{provider}",
        },
    )


# --- the provider -------------------------------------------------------------------------------------------

_REPLY: Final = "".join(
    spelled(event) if not isinstance(event, str) else event
    for event in (opening(), *text_block(0, "I ", "read."), *last_events("end_turn"))
).encode()
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(
    _REPLY
)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length:")
            if found:
                await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
            writer.write(_HEAD + _REPLY)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
