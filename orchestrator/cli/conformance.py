"""Runs the scenarios that every kind of external agent must pass, on this machine.

Everything is real but the model, which is a local server that plays a script; no key and no database is
needed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

from orchestrator import bootstrap
from orchestrator.agents import programs
from orchestrator.agents.types import AGENT_TYPES, Capability
from orchestrator.config import Settings
from orchestrator.core.errors import Refused, Unavailable

if TYPE_CHECKING:
    from orchestrator.agents.conformance.scenarios import Scenario
    from orchestrator.agents.external import Adapter
    from orchestrator.agents.ports import Transcripts
    from orchestrator.core.assignment import Assignment

_PATIENCE: Final = 20.0
_KEYS: Final = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")
Make = Any
"""Makes an adapter of the step's transcripts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`state`: passed, failed, or skipped for what the agent says that it can't do."""

    scenario: str
    state: str
    detail: str
    seconds: float


@dataclass
class ModelServer:
    """The command `orchestrator model-server`, as a process."""

    url: str
    client: httpx2.Client
    _after: int = 0

    def play(self, script: Mapping[str, Any], /) -> None:
        sends = self._get("log")["sends"]
        self._after = max((send["number"] for send in sends), default=0)
        self._send("DELETE", "faults", {})
        self._send("POST", "script", script)

    def fault(self, kind: str, times: int, /) -> None:
        self._send("POST", "faults", {"kind": kind, "times": times})

    def calls(self) -> int:
        return len(self._get(f"log?after={self._after}")["sends"])

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"{self.url}/_control/{path}").json()
        return found

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        headers = {"content-type": "application/json"}
        text = json.dumps(body)
        answer = self.client.request(method, f"{self.url}/_control/{path}", content=text, headers=headers)
        if answer.status_code != httpx2.codes.OK:
            raise Unavailable("model-server-refused", f"The model server refused: {answer.text[:300]}", "")


@contextmanager
def _model_server() -> Iterator[ModelServer]:
    words = [sys.executable, "-m", "orchestrator", "model-server", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        with httpx2.Client(trust_env=False, timeout=_PATIENCE) as client:
            yield ModelServer("http://" + line.split("http://")[1].split()[0], client)
    finally:
        process.terminate()
        process.wait(_PATIENCE)
        if process.stdout is not None:
            process.stdout.close()


def run(name: str, model: str | None, tell: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
    """`name`: of a kind that is a program of its own, or `module:function` that returns an adapter.

    Raises Refused `agent-not-external`, or Unavailable `agent-program-missing`.
    """
    from orchestrator.agents.conformance.scenarios import PLANTED, SCENARIOS

    settings = Settings()
    make, capabilities, model_name = _subject(name, settings)
    outcomes = []
    planted = {key: os.environ.get(key) for key in _KEYS}
    os.environ.update(dict.fromkeys(_KEYS, PLANTED))
    try:
        with _model_server() as server:
            for scenario in SCENARIOS:
                outcome = _outcome(scenario, make, capabilities, server, model or model_name, settings)
                tell(outcome)
                outcomes.append(outcome)
    finally:
        for key, value in planted.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return tuple(outcomes)


def _subject(name: str, settings: Settings) -> tuple[Make, frozenset[Capability], str]:
    if ":" in name:
        module, _, function = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        made = getattr(importlib.import_module(module), function)
        declared = frozenset(Capability(word) for word in getattr(made, "capabilities", Capability))
        return made, declared, settings.model
    kind = AGENT_TYPES.get(name)
    if kind is None or kind.program is None:
        known = ", ".join(kind.name for kind in AGENT_TYPES.values() if kind.program)
        raise Refused(
            "agent-not-external",
            f"{name!r} is no kind of agent that is a program of its own.",
            f"There are {known}; one of yours is given as module:function.",
        )
    if programs.find(kind.program, settings.agents_dir) is None:
        raise Unavailable(
            "agent-program-missing",
            f"{kind.label} isn't installed on this machine, so there is nothing to try.",
            f"Install it: orchestrator agent install {name}",
        )
    openai = "anthropic" not in kind.providers
    model = settings.openai_model if openai else settings.model

    def make(open_transcripts: Callable[[Assignment], Transcripts]) -> Adapter:
        return bootstrap.adapter(settings, name, open_transcripts)

    return make, kind.capabilities, model


def _outcome(
    scenario: Scenario,
    make: Make,
    capabilities: frozenset[Capability],
    server: ModelServer,
    model: str,
    settings: Settings,
) -> Outcome:
    from orchestrator.agents.conformance.scenarios import Failed
    from orchestrator.agents.conformance.site import Site

    if lacking := scenario.needs - capabilities:
        return Outcome(scenario.name, "skipped", f"it can't do: {', '.join(sorted(lacking))}", 0.0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        wiring = bootstrap.load(
            "orchestrator:conformance", settings.model_copy(update={"data_dir": Path(folder)})
        )
        try:
            site = Site(wiring.workspaces, Path(folder), make, server, model)
            scenario.play(site)
        except Failed as failed:
            said = site.ear.text.strip().splitlines()[-3:]
            detail = " | ".join([f"not so: {failed}", *said])
            return Outcome(scenario.name, "failed", detail, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - whatever an adapter of somebody's raises
            detail = f"it raised {type(error).__name__}: {error}"
            return Outcome(scenario.name, "failed", detail, time.monotonic() - began)
    return Outcome(scenario.name, "passed", "", time.monotonic() - began)
