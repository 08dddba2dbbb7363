"""Five seconds after a stop nothing of the step runs any more, and everything of others does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator.commands import intervene
from orchestrator.core.assignment import Stop
from orchestrator.core.verdict import StopReason
from orchestrator.tasks.grace import GRACE_SECONDS, Grace
from orchestrator.workspaces.kin import Lineage
from orchestrator.workspaces.sandbox import MARK
from tests.integration.stack import Stack, until, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who started whom is read from /proc")


def alive(word: str) -> list[int]:
    """Processes with this word on their command line."""
    found = []
    for at in Path("/proc").iterdir():
        if at.name.isdecimal():
            try:
                words = (at / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words:
                found.append(int(at.name))
    return found


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


# --- by itself ----------------------------------------------------------------------------------------------


def test_what_a_thread_started_is_its_lineage_and_nothing_of_another_thread_s(
    child: subprocess.Popen[bytes],
) -> None:
    begun, ended = threading.Event(), threading.Event()
    theirs: list[subprocess.Popen[bytes]] = []

    def other() -> None:
        theirs.append(subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait; :"]))
        begun.set()
        ended.wait()
        theirs[0].wait()

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    assert thread.native_id is not None
    lineage = Lineage(thread.native_id, MARK)
    until(lambda: len(lineage.living()) == 2, "the shell's own child")
    assert {one.pid for one in lineage.living()}.isdisjoint({child.pid})
    assert lineage.kill() == 2
    until(lambda: not lineage.living(), "an end: what is dead but not waited for doesn't count")
    ended.set()
    thread.join()
    assert theirs[0].returncode == -9
    assert child.poll() is None


def test_the_id_of_a_process_that_ended_kills_nobody(child: subprocess.Popen[bytes]) -> None:
    (mine,) = [one for one in Lineage.of_this_thread(MARK).living() if one.pid == child.pid]
    another = type(mine)(mine.pid, str(int(mine.started) - 1))
    assert not another.kill()
    assert child.poll() is None
    assert mine.kill()
    assert child.wait() == -9


def test_the_grace_is_over_after_five_seconds_and_only_while_the_agent_works(
    child: subprocess.Popen[bytes],
) -> None:
    stop = Stop()
    grace = Grace(stop)
    begun, returning, returned, again, ended = (threading.Event() for _ in range(5))
    theirs: list[subprocess.Popen[bytes]] = []

    def agent() -> None:
        theirs.append(subprocess.Popen(["sleep", "600"]))
        with grace.over_agent():
            begun.set()
            returning.wait()
        returned.set()
        again.wait()
        with grace.over_agent():
            begun.set()
            ended.wait()
        theirs[0].wait()

    thread = threading.Thread(target=agent)
    thread.start()
    begun.wait()
    grace.look(0.0)
    stop.set(StopReason.CANCEL)
    grace.look(100.0)
    grace.look(100.0 + GRACE_SECONDS - 0.1)
    returning.set()
    returned.wait()
    grace.look(100.0 + GRACE_SECONDS)
    assert theirs[0].poll() is None, "the agent has returned: this is the shell's"
    begun.clear()
    again.set()
    begun.wait()
    grace.look(100.0 + GRACE_SECONDS)
    ended.set()
    thread.join()
    assert theirs[0].returncode == -9
    assert child.poll() is None, "another thread's"


# --- in a worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "pool"), [("command", "prefork"), ("command", "threads"), ("process", "threads")]
)
def test_what_an_agent_that_does_not_look_has_started_dies_five_seconds_after_the_stop(
    stack: Stack, way: str, pool: str
) -> None:
    mine, others = f"mine-{uuid4().hex}", f"others-{uuid4().hex}"

    def request(word: str) -> dict[str, object]:
        spec = {"do": "stubborn", "way": way, "word": word}
        return {"description": "x", "steps": [{"id": "a", "description": "a", "spec": spec}]}

    patient = Stack(stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_CANCEL_GRACE": "PT1H"})
    try:
        with worker(patient, pool=pool, slots=2):
            patient.call(request(mine), task_id="mine")
            patient.call(request(others), task_id="others")
            for word in (mine, others):
                until(lambda word=word: len(alive(word)) >= 2, f"both processes of {word}")  # type: ignore[misc]
            patient.command(intervene.cancel, "mine")
            asked = time.monotonic()
            until(lambda: not alive(mine), "the death of what the step started")
            took = time.monotonic() - asked
            assert took >= 5, "the grace, after the next heartbeat"
            assert patient.ends("mine") == "cancelled", "and its agent could end"
            assert len(alive(others)) >= 2
            patient.command(intervene.cancel, "others")
            assert patient.ends("others") == "cancelled"
            assert not alive(others)
    finally:
        patient.close()
