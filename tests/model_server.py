"""The local model server for tests: in a thread of this process, or as the real command.

with model_server({"conversations": [{"turns": [{"text": "Hello"}]}]}) as model:
    …  # model.url, model.sends(), model.fault("rate-limit", retry_after=1)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from orchestrator.modelserver.faults import Order
from orchestrator.modelserver.script import Player, Script
from orchestrator.modelserver.sends import Outcome, Send, SendLog
from orchestrator.modelserver.server import ModelServer
from orchestrator.modelserver.stage import Stage

ScriptLike = Script | Mapping[str, Any] | Player
PATIENCE = 20.0


@dataclass(frozen=True)
class RunningModel:
    """A server in a thread of this process."""

    url: str
    stage: Stage
    loop: asyncio.AbstractEventLoop

    @property
    def openai_url(self) -> str:
        """As the OpenAI SDK wants it."""
        return f"{self.url}/v1"

    def sends(self) -> list[Send]:
        """All requests to a model so far, in order; `.body` is the request's JSON."""
        return self.stage.log.all()

    def bodies(self) -> list[Mapping[str, Any]]:
        return [send.body for send in self.sends()]

    def finished_twice(self) -> list[tuple[str, str, int]]:
        """Session, conversation and turn of all that was delivered whole more than once."""
        return self.stage.log.finished_twice()

    def fault(self, kind: str, **more: Any) -> None:
        """For the next send, or as `when`, `turn`, `nth` and `times` say."""
        order = Order.model_validate({"kind": kind, **more})
        self._in_loop(lambda: self.stage.faults.add(order))

    def play(self, script: Script | Mapping[str, Any]) -> None:
        self._in_loop(lambda: self.stage.load(Script.model_validate(script)))

    def await_sends(self, count: int) -> None:
        """Until that many requests have come."""
        assert self.stage.log.wait(lambda: len(self.stage.log._sends) >= count, PATIENCE), self.sends()

    def await_end(self) -> list[Send]:
        """Until no request is open: what the server makes of a client's leaving is known then."""
        log = self.stage.log
        quiet = log.wait(lambda: all(send.outcome is not Outcome.OPEN for send in log._sends), PATIENCE)
        assert quiet, self.sends()
        return self.sends()

    def _in_loop(self, work: Any) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)


@contextmanager
def model_server(
    script: ScriptLike | None = None, *, log: Path | None = None, host: str = "127.0.0.1", port: int = 0
) -> Iterator[RunningModel]:
    """`log`: a file that gets a line per send. A `script` that isn't JSON or a `Script` is asked itself."""
    started: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()
    stage = _stage(script if script is not None else {}, SendLog(log, bodies=True))

    async def serve() -> None:
        over = asyncio.Event()
        async with ModelServer(stage).listening(host, port) as chosen:
            started.append((chosen, asyncio.get_running_loop(), over))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="model-server", daemon=True)
    thread.start()
    assert ready.wait(PATIENCE), "the model server did not start"
    chosen, loop, over = started[0]
    try:
        yield RunningModel(f"http://{host}:{chosen}", stage, loop)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE)
        stage.log.shut()
        assert not thread.is_alive(), "the model server did not stop"


def _stage(script: ScriptLike, log: SendLog) -> Stage:
    if not isinstance(script, Script | Mapping):
        return Stage(script, log)
    return Stage.of(Script.model_validate(script), log)


@dataclass(frozen=True)
class ModelProcess:
    """The command as a process of its own, as another program would use it."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def control(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"content-type": "application/json"}
        with httpx2.Client(trust_env=False, timeout=PATIENCE) as client:
            answer = client.request(
                method, f"{self.url}/_control/{path}", content=json.dumps(body), headers=headers
            )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sends(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control("GET", "log")["sends"]
        return found


@contextmanager
def model_process(folder: Path, script: Mapping[str, Any] | None, *words: str) -> Iterator[ModelProcess]:
    """`words` are further options of `orchestrator model-server`."""
    log = folder / "sends.jsonl"
    argv = [sys.executable, "-m", "orchestrator", "model-server", "--port", "0", "--log", str(log), *words]
    if script is not None:
        path = folder / "script.json"
        path.write_text(json.dumps(script))
        argv += ["--script", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, line
        yield ModelProcess("http://" + line.split("http://")[1].split()[0], process, log)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        if process.stdout is not None:
            process.stdout.close()
