"""What a turn costs when the conversation is short and when it is long: the real loop, SDK and journal.

Each turn is one call that reads a file of a thousand characters. Own work is what the loop does between two
requests: it appends the turn, runs the call, writes it down, looks whether to go on; it is measured with a
model that does not look at its request. The whole adds building and sending the request by the official SDK
and reading the reply, from a program of its own on loopback that answers at once.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, Literal

from orchestrator.bootstrap import Wiring
from orchestrator.commands import request, submit
from orchestrator.core.assignment import Limits, Stop
from orchestrator.core.verdict import Done
from orchestrator.db import claims
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import Scope
from orchestrator.db.sql import StepRef
from orchestrator.engine import loop
from orchestrator.engine.ports import Model, ModelRequest, Reply, StreamEvent, Usage
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.tasks.attempt import assignment_of
from orchestrator.tasks.journal import PostgresJournal
from orchestrator.tasks.link import StepLink
from tests.benchmarks.installation import installed
from tests.engine_world import FolderWorkspace

EARLY: Final = 10
LATE: Final = 500
AROUND: Final = 9
"""Turns before and after the one that is looked at, which are measured with it."""
_FILE: Final = "word " * 200
_FILES: Final = 7
"""Read in turn: an agent that reads the same one again and again is stopped."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Milliseconds of single turns: `own` work, the processor's share of it (which a busy machine changes
    least), and the `whole` with the request."""

    own_early: list[float] = field(default_factory=list)
    own_late: list[float] = field(default_factory=list)
    cpu_early: list[float] = field(default_factory=list)
    cpu_late: list[float] = field(default_factory=list)
    whole_early: list[float] = field(default_factory=list)
    whole_late: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of the own work, in time of the processor, from the early turns to the late ones. By the lower
        quartiles: what else a machine does only adds, for seconds at a time, to one side or the other."""
        return quantiles(self.cpu_late)[0] / quantiles(self.cpu_early)[0]


def measure(early: int = EARLY, late: int = LATE, around: int = AROUND, rounds: int = 5) -> Turns:
    found = Turns()
    with installed() as here, tempfile.TemporaryDirectory() as folder:
        wiring = here.wiring("bench")
        for number in range(rounds):
            for turn, own, cpu, whole in (
                (late, found.own_late, found.cpu_late, found.whole_late),
                (early, found.own_early, found.cpu_early, found.whole_early),  # as soon after as can be
            ):
                near, last = slice(turn - around - 1, turn + around), turn + around + 1
                name = f"turns-{number}-{turn}"
                alone = _Timed(_Answers(last))
                _converse(wiring, f"{name}-alone", alone, Path(folder) / f"{name}-alone")
                own.extend(alone.own[near])
                cpu.extend(alone.cpu[near])
                with _answering(last) as url:
                    model = _Timed(AnthropicModel("claude-sonnet-4-6", "none", url))
                    _converse(wiring, name, model, Path(folder) / name)
                whole.extend(model.whole[near])
    return found


def _converse(wiring: Wiring, task: str, model: _Timed, folder: Path) -> None:
    claimed = _claimed(wiring, task)
    folder.mkdir()
    for number in range(_FILES):
        (folder / f"{number}.txt").write_text(_FILE)
    limits = Limits(turns=10**6, tokens=10**12, cost_usd=Decimal(10**6))
    link = StepLink(wiring, claimed)
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, 0)
    verdict = loop.work(
        replace(assignment_of(wiring, claimed, "engine"), limits=limits),
        link,
        model=model,
        journal=PostgresJournal(wiring.engine, scope, wiring.redactor),
        workspace=FolderWorkspace(folder),
    )
    assert isinstance(verdict, Done), verdict


def _claimed(wiring: Wiring, task: str) -> Claimed:
    tenant = wiring.tenant_id
    with wiring.engine.begin() as connection:
        submit.submit(
            connection,
            request.parse({"description": "Read it again and again."}),
            policy=wiring.policy,
            tenant_id=tenant,
            task_id=task,
            created_by="bench",
            now=wiring.clock(),
        )
        row = connection.exec_driver_sql(
            "SELECT workflow_id, id FROM steps WHERE task_id = %s", (task,)
        ).one()
        step = StepRef(tenant, task, row.workflow_id, row.id)
        claimed = claims.claim(
            connection, step, lease=timedelta(hours=1), agent_id="bench@here/1", signature=None
        )
    if claimed is None:
        raise RuntimeError("the step can't be claimed")
    return claimed


@dataclass
class _Answers:
    """Answers as the program does, without a look at the request."""

    turns: int
    name: str = "claude-sonnet-4-6"
    kind: Literal["live", "recorded"] = "live"
    turn: int = 0

    def reply(self, _: ModelRequest, __: Callable[[StreamEvent], None], ___: Stop, /) -> Reply:
        self.turn += 1
        name, arguments = _call(self.turn, last=self.turn >= self.turns)
        block = {"type": "tool_use", "id": f"call_{self.turn}", "name": name, "input": arguments}
        return Reply((block,), "tool_use", Usage(100 + self.turn, 26), self.name)


class _Timed:
    """Notes when each request began and when its reply was there."""

    kind: Literal["live", "recorded"] = "live"

    def __init__(self, model: Model) -> None:
        self._model = model
        self.name = model.name
        self.own: list[float] = []
        """By turn, from its reply to the next request; `cpu` is what the processor worked of it."""
        self.cpu: list[float] = []
        self.whole: list[float] = []
        """By turn, from its request to the next one."""
        self._asked: float | None = None
        self._answered = self._worked = 0.0

    def reply(self, asked: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        now, worked = time.perf_counter(), time.process_time()
        if self._asked is not None:
            self.own.append(1000 * (now - self._answered))
            self.cpu.append(1000 * (worked - self._worked))
            self.whole.append(1000 * (now - self._asked))
        self._asked = now
        reply = self._model.reply(asked, listen, stop)
        self._answered, self._worked = time.perf_counter(), time.process_time()
        return reply


# --- the model, in a process of its own ---------------------------------------------------------------------


@contextmanager
def _answering(turns: int) -> Iterator[str]:
    words = [sys.executable, "-m", "tests.benchmarks.turns", str(turns)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def _serve(turns: int) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), _Answer) as server:
        server.turns, server.turn = turns, 0  # type: ignore[attr-defined]
        print(server.server_address[1], flush=True)
        server.serve_forever()


class _Answer(socketserver.StreamRequestHandler):
    """One request, answered as soon as it is there; it isn't even parsed."""

    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self.rfile.read(length)
        server: Any = self.server
        server.turn += 1
        body = _stream(server.turn, last=server.turn >= server.turns)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n"
        self.wfile.write(head.encode() + b"connection: close\r\n\r\n" + body)


def _call(turn: int, *, last: bool) -> tuple[str, Mapping[str, Any]]:
    if last:
        return "attempt_completion", {"summary": "Read."}
    return "read_file", {"path": f"{turn % _FILES}.txt"}


def _stream(turn: int, *, last: bool) -> bytes:
    name, arguments = _call(turn, last=last)
    block = {"type": "tool_use", "id": f"call_{turn}", "name": name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 100 + turn, "output_tokens": 1},
    }
    ending = {"stop_reason": "tool_use", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 25}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
