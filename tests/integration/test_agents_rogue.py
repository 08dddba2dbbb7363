"""Agents' programs that flood, garble, or don't end: real ones, at the other end of real pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents import pipes, telling
from orchestrator.agents.acp import AcpAdapter, Said, Settings
from orchestrator.agents.agentapi import AgentApi
from orchestrator.agents.aider import Aider
from orchestrator.agents.external import Adapter
from orchestrator.agents.launch import Confines, Enclosure
from orchestrator.agents.programs import Program
from orchestrator.core.assignment import Assignment, Limits, Stop
from orchestrator.core.verdict import Broke, Done, StopReason, Verdict, Yielded
from orchestrator.workspaces.room import RoomBounds
from tests.agent_world import AgentWorld
from tests.agents_installed import with_claude
from tests.integration.repositories import installation, without_bubblewrap

with_claude()

from orchestrator.agents.claude_code import ClaudeCode  # noqa: E402 - needs what may be missing

SCRIPT = Path(__file__).parents[1] / "rogue_agent.py"
NOBODY = "http://127.0.0.1:9"
SECONDS = 2.0
"""How long a flood lasts."""
MOST_GROWTH = 200 * 1024**2
"""Bytes of memory that a worker may need for it at most; each of these floods would take gigabytes."""


@dataclass(frozen=True)
class Rogue:
    """The profile of one that speaks the Agent Client Protocol."""

    name: str = "rogue"
    program: str = "rogue"

    def words(self, assignment: Assignment) -> Sequence[str]:
        del assignment
        return ()

    def prepare(self, assignment: Assignment, enclosure: Enclosure) -> Mapping[str, str]:
        del assignment, enclosure
        return {}

    def settings(self, assignment: Assignment) -> Settings:
        del assignment
        return Settings()

    @property
    def confines(self) -> Confines:
        return Confines()

    def problem(self, said: Said) -> Broke | None:
        del said
        return None


class Nowhere:
    """Transcripts that are counted and forgotten."""

    def __init__(self) -> None:
        self.kept = 0

    def append(
        self, project: str, session: str, subpath: str, entries: Sequence[Mapping[str, Any]], /
    ) -> None:
        del project, session, subpath
        self.kept += len(json.dumps(list(entries)))

    def load(self, project: str, session: str, subpath: str, /) -> Sequence[Mapping[str, Any]]:
        del project, session, subpath
        return ()

    def subpaths(self, project: str, session: str, /) -> Sequence[str]:
        del project, session
        return ()


@dataclass
class Counting:
    """A link that counts what goes over it, and holds that Postgres could keep it."""

    stop: Stop = field(default_factory=Stop)
    notes: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    told: str = ""

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        text = json.dumps(data, allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in text
        assert len(text.encode()) < 20_000_000
        self.notes[kind] += 1

    def log(self, stream: str, text: str) -> None:
        assert "\0" not in text.encode().decode()
        self.logged[stream] += len(text)
        if stream == "system":
            self.told += text


def _program(speaks: str, how: str) -> Program:
    command = (sys.executable, str(SCRIPT), speaks, how)
    return Program("rogue", "0", command, (), (SCRIPT.parent, Path(sys.prefix), Path(sys.base_prefix)))


def _adapter(speaks: str, how: str, transcripts: Nowhere) -> Adapter:
    program = _program(speaks, how)
    match speaks:
        case "acp":
            return AcpAdapter(Rogue(), lambda _: program)
        case "claude":
            return ClaudeCode(program, "claude-sonnet-4-6", lambda _: transcripts)
        case _:
            return Aider(program, "claude-sonnet-4-6")


@dataclass
class Found:
    world: AgentWorld
    link: Counting
    transcripts: Nowhere

    def work(self, **changes: Any) -> Verdict:
        return self.world.work(self.link, **changes)  # type: ignore[arg-type]


Make = Callable[..., Found]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(speaks: str, how: str, *, plain: bool = False) -> Found:
        sandbox = without_bubblewrap(tmp_path / "plain") if plain else None
        workspaces = installation(tmp_path / "root", sandbox=sandbox)
        if not plain and workspaces.sandbox.kind != "bubblewrap":
            pytest.skip(f"NOT TESTED HERE: {workspaces.sandbox.warning}")
        transcripts = Nowhere()
        world = AgentWorld(
            workspaces, tmp_path, _adapter(speaks, how, transcripts), NOBODY, "claude-sonnet-4-6"
        )
        return Found(world, Counting(), transcripts)

    return made


DONE = "done"
HOSTILE = [
    ("acp", "wrong types", DONE),
    ("acp", "deep nesting", DONE),
    ("acp", "huge ids", DONE),
    ("acp", "NUL and halves of characters", DONE),
    ("acp", "no UTF-8", DONE),
    ("acp", "a stranger's session", DONE),
    ("acp", "replies to nothing", DONE),
    ("acp", "a reply of another type", "agent-request-failed"),
    ("acp", "an error of another type", "agent-request-failed"),
    ("acp", "a session without a name", "agent-request-failed"),
    ("acp", "a session whose name can't be kept", "agent-request-failed"),
    ("acp", "leaves a child", "agent-program-ended"),
    ("claude", "lines that are no messages", DONE),
    ("claude", "wrong types", "agent-died"),
    ("claude", "a request without a name", "agent-died"),
    ("claude", "an unhashable name", "agent-died"),
    ("claude", "an unknown block", "agent-died"),
    ("claude", "deep nesting", DONE),
    ("claude", "huge ids", DONE),
    ("claude", "NUL and halves of characters", DONE),
    ("claude", "leaves a child", "agent-died"),
    ("aider", "no UTF-8", DONE),
    ("aider", "leaves a child", DONE),
]


@pytest.mark.parametrize(("speaks", "how", "ends"), HOSTILE)
def test_a_hostile_program_is_passed_over_or_ends_the_step_with_a_clear_error(
    make: Make, speaks: str, how: str, ends: str
) -> None:
    found = make(speaks, how)
    began = time.monotonic()
    verdict = found.work()
    assert time.monotonic() - began < 30
    if ends == DONE:
        assert isinstance(verdict, Done), verdict
        assert "a + b" in found.world.file("sums.py")
        assert "NOT MINE" not in verdict.summary
    else:
        assert isinstance(verdict, Broke), verdict
        assert verdict.code == ends
        assert "\0" not in verdict.message
    assert found.world.left() == []


@pytest.mark.parametrize("speaks", ["acp", "claude", "aider"])
def test_a_child_that_holds_the_output_open_is_not_waited_for_without_a_sandbox_either(
    make: Make, speaks: str
) -> None:
    found = make(speaks, "leaves a child", plain=True)
    began = time.monotonic()
    verdict = found.work()
    assert isinstance(verdict, Done if speaks == "aider" else Broke), verdict
    assert time.monotonic() - began < 30
    assert found.world.left() == []


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("speaks", "code"), [("acp", "agent-program-ended"), ("claude", "agent-died"), ("aider", DONE)]
)
def test_a_program_that_closes_its_output_and_lives_on_is_ended(
    make: Make, speaks: str, code: str, *, plain: bool
) -> None:
    found = make(speaks, "closes its output", plain=plain)
    verdict = found.work()
    assert (verdict.code if isinstance(verdict, Broke) else DONE) == code, verdict
    assert found.world.left() == []


def test_a_program_that_fills_the_disk_is_ended(make: Make) -> None:
    found = make("acp", "files without end")
    sandbox = found.world.workspaces.sandbox
    sandbox.bounds = replace(sandbox.bounds, room=RoomBounds(bytes=20_000_000))
    verdict = found.work()
    assert isinstance(verdict, Broke), verdict
    assert verdict.code == "workspace-too-large"
    assert found.world.left() == []


@pytest.mark.parametrize("speaks", ["acp", "claude"])
def test_a_line_without_end_ends_the_step(make: Make, speaks: str) -> None:
    found = make(speaks, "an endless line")
    before = _begin_peak()
    verdict = found.work()
    assert isinstance(verdict, Broke), verdict
    assert verdict.code == "agent-flooded"
    assert "sent a line of more than 8 MB" in verdict.message
    assert _peak() - before < MOST_GROWTH
    assert found.world.left() == []


FLOODS = [
    ("acp", "a flood of tools"),
    ("acp", "a flood of words"),
    ("acp", "a flood of meta"),
    ("acp", "a flood of requests"),
    ("acp", "a flood of complaints"),
    ("acp", "a flood of nothing"),
    ("claude", "a flood of tools"),
    ("claude", "a flood of words"),
    ("claude", "a flood of requests"),
    ("claude", "a flood of transcripts"),
    ("claude", "a flood of complaints"),
    ("claude", "a flood of nothing"),
    ("aider", "an endless line"),
    ("aider", "a flood of lines"),
    ("aider", "a flood of complaints"),
]


@pytest.mark.parametrize(("speaks", "how"), FLOODS)
def test_a_flood_fills_neither_the_workers_memory_nor_its_database_and_is_stopped_at_once(
    make: Make, speaks: str, how: str
) -> None:
    found, stopped_at = make(speaks, how), 0.0

    def stop() -> None:
        nonlocal stopped_at
        stopped_at = time.monotonic()
        found.link.stop.set(StopReason.CANCEL)

    before = _begin_peak()
    timer = threading.Timer(SECONDS, stop)
    timer.start()
    verdict = found.work()
    timer.cancel()
    grown = _peak() - before
    if isinstance(verdict, Broke):
        assert verdict.code == "agent-flooded"
    else:
        assert verdict == Yielded(StopReason.CANCEL)
        assert time.monotonic() - stopped_at < 30
    assert grown < MOST_GROWTH
    told = sum(number for kind, number in found.link.notes.items() if kind != "text")
    assert told <= telling.BURST + telling.PER_SECOND * SECONDS * 10
    assert found.link.logged.total() <= telling.MOST_LOG + 10_000
    assert found.transcripts.kept <= 70 * 1024**2
    assert found.world.left() == []


@pytest.mark.parametrize(
    ("speaks", "how"),
    [("acp", "a flood of words"), ("claude", "a flood of tools"), ("aider", "a flood of lines")],
)
def test_more_than_a_prompt_may_say_ends_the_step(
    make: Make, monkeypatch: pytest.MonkeyPatch, speaks: str, how: str
) -> None:
    monkeypatch.setattr(pipes, "MOST_AT_ONCE", 2 * pipes.MEGABYTE)
    monkeypatch.setattr("orchestrator.agents.aider.MOST_AT_ONCE", 2 * pipes.MEGABYTE)
    verdict = make(speaks, how).work(limits=Limits(wall_time=timedelta(seconds=60)))
    assert isinstance(verdict, Broke), verdict
    assert verdict.code == "agent-flooded"
    assert "more than 2 MB in one prompt" in verdict.message


@contextmanager
def _served(folder: Path, how: str) -> Iterator[Callable[[Counting], Verdict]]:
    """An agentapi server of its own process, and a step for it."""
    command = (sys.executable, str(SCRIPT), "agentapi", how)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        world = AgentWorld(installation(folder / "root"), folder, None, url, "none")  # type: ignore[arg-type]
        agent = AgentApi(url, None, lambda _: world.sessions, world._workspace)
        try:
            yield lambda link: agent.work(world.assignment(), link)
        finally:
            server.kill()


def test_a_server_that_tells_nonsense_is_not_confused_with_one_that_fails(tmp_path: Path) -> None:
    with _served(tmp_path, "wrong types") as work:
        assert isinstance(work(Counting()), Done)


@pytest.mark.parametrize("how", ["an endless event", "an endless line", "deep nesting"])
def test_a_server_whose_event_has_no_end_is_left(tmp_path: Path, how: str) -> None:
    before = _begin_peak()
    with _served(tmp_path, how) as work:
        verdict = work(Counting())
    assert isinstance(verdict, Broke), verdict
    assert verdict.code == "agentapi-unreachable"
    assert _peak() - before < MOST_GROWTH


def test_a_server_that_floods_fills_no_memory_and_is_left_when_told(tmp_path: Path) -> None:
    link, before = Counting(), _begin_peak()
    timer = threading.Timer(SECONDS, lambda: link.stop.set(StopReason.CANCEL))
    with _served(tmp_path, "a flood of events") as work:
        timer.start()
        assert work(link) == Yielded(StopReason.CANCEL)
    assert _peak() - before < MOST_GROWTH
    threads = [thread for thread in threading.enumerate() if "_follow" in thread.name]
    for thread in threads:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in threads)


def _begin_peak() -> int:
    """Bytes of this process's memory; its greatest is measured from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
