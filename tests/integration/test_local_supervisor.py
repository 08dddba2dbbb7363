from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.core.errors import Unavailable, Unknown
from orchestrator.local import probes, processes, roster, supervisor as supervising
from orchestrator.local.processes import Identity
from orchestrator.local.service import Service, StopOrder
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OBEDIENT = """
    import signal, sys, time
    def end(*_):
        print("asked to end at", time.monotonic(), flush=True)
        sys.exit()
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""
_WITH_CHILDREN = """
    import os, subprocess, sys, time
    same = subprocess.Popen(["sleep", "300"])
    away = subprocess.Popen(["sleep", "300"], start_new_session=True)
    print("children", same.pid, away.pid, "ready", flush=True)
    time.sleep(300)
"""
_STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""


def _service(
    name: str,
    program: str,
    order: StopOrder = StopOrder.WORKER,
    *,
    stop_seconds: float = 10.0,
    kind: str = "test",
) -> Service:
    return Service(
        name=name,
        kind=kind,
        argv=(sys.executable, "-c", textwrap.dedent(program)),
        ready=probes.says("ready"),
        stop_order=order,
        stop_seconds=stop_seconds,
        ready_seconds=20,
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    one = Supervisor(tmp_path, say=said.append)
    yield one
    one.abort()


def _until(condition: Callable[[], object], *, round_of: Supervisor | None = None) -> None:
    """The test's own timeout ends what never comes."""
    while not condition():
        if round_of:
            round_of.look()
        time.sleep(0.01)


def _identity(folder: Path, name: str) -> Identity | None:
    current = roster.read(folder)
    assert current is not None
    return next(entry.identity for entry in current.entries if entry.name == name)


def _has_said(said: list[str], lines: int) -> bool:
    return len(said) == lines


def _children_in(log: Path) -> list[Identity]:
    words = log.read_text().split()
    found = [processes.identify(int(word)) for word in words[1:3]]
    return [identity for identity in found if identity]


def test_a_crashed_service_comes_back_and_later_each_time(
    supervisor: Supervisor, tmp_path: Path, said: list[str]
) -> None:
    supervisor.launch(_service("one", _OBEDIENT))
    supervisor.await_ready("one")
    for crash in (1, 2):
        running = _identity(tmp_path, "one")
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        _until(partial(_has_said, said, crash), round_of=supervisor)
        assert _identity(tmp_path, "one") is None
        _until(partial(_identity, tmp_path, "one"), round_of=supervisor)
        assert _identity(tmp_path, "one") != running
    assert "SIGKILL" in said[0]
    assert "again in 0.5s" in said[0]
    assert "again in 1s" in said[1]


def test_services_stop_in_their_order_and_together_within_one(supervisor: Supervisor) -> None:
    orders = [StopOrder.POSTGRES, StopOrder.WORKER, StopOrder.API, StopOrder.BEAT, StopOrder.REDIS]
    for order in orders:
        supervisor.launch(_service(order.name, _OBEDIENT, order))
    for order in orders:
        supervisor.await_ready(order.name)
    supervisor.stop()
    ended = [float(supervisor.log(order.name).read_text().split()[-1]) for order in sorted(orders)]
    assert all(earlier < later for earlier, later in pairwise(ended))


def test_one_that_does_not_listen_is_killed_with_all_that_it_started(supervisor: Supervisor) -> None:
    supervisor.launch(_service("deaf", _STUBBORN, stop_seconds=0.1))
    supervisor.launch(_service("parent", _WITH_CHILDREN, stop_seconds=0.1))
    supervisor.await_ready("deaf")
    supervisor.await_ready("parent")
    children = _children_in(supervisor.log("parent"))
    assert len(children) == 2
    supervisor.stop()
    assert not [child for child in children if processes.alive(child)]
    assert not processes.marked(supervisor.stack)


def test_children_of_a_crashed_service_do_not_outlive_it(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.launch(_service("parent", _WITH_CHILDREN))
    supervisor.await_ready("parent")
    child, _ = _children_in(supervisor.log("parent"))
    parent = _identity(tmp_path, "parent")
    assert parent is not None
    os.kill(parent.pid, signal.SIGKILL)
    _until(lambda: not processes.alive(parent))
    supervisor.look()
    assert not processes.alive(child)


def test_a_service_that_ends_while_it_starts_shows_its_last_words(supervisor: Supervisor) -> None:
    supervisor.launch(_service("broken", "raise SystemExit('the disk is gone')"))
    with pytest.raises(Unavailable, match="the disk is gone"):
        supervisor.await_ready("broken")


def test_words_of_an_earlier_run_make_nobody_ready(supervisor: Supervisor) -> None:
    supervisor.log("silent").write_text("ready\n")
    supervisor.launch(_service("silent", "raise SystemExit(3)"))
    with pytest.raises(Unavailable, match="exit 3"):
        supervisor.await_ready("silent")


def test_a_restart_takes_a_new_environment_along(supervisor: Supervisor, tmp_path: Path) -> None:
    program = "import os, time; print('ready with', os.environ.get('KEY'), flush=True); time.sleep(300)"
    supervisor.launch(_service("a", program, kind="worker"))
    supervisor.launch(_service("b", program, kind="worker"))
    supervisor.await_ready("a")
    before = _identity(tmp_path, "a")
    assert supervisor.restart("worker", {"KEY": "new"}) == ("a", "b")
    supervisor.await_ready("a")
    assert _identity(tmp_path, "a") != before
    assert supervisor.log("a").read_text().splitlines() == ["ready with None", "ready with new"]
    with pytest.raises(Unknown, match="unknown-service"):
        supervisor.restart("nobody")


def test_a_log_stays_short_while_its_service_goes_on_writing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "LOG_BYTES", 10_000)
    supervisor.launch(
        _service(
            "talker",
            """
            import time
            number = 0
            print("ready", flush=True)
            while True:
                number += 1
                print(number, "x" * 100, flush=True)
                time.sleep(0.001)
            """,
        )
    )
    supervisor.await_ready("talker")
    aside = supervisor.log("talker").with_suffix(".log.1")
    _until(aside.exists, round_of=supervisor)
    before = supervisor.log("talker").stat().st_size
    _until(lambda: supervisor.log("talker").stat().st_size > before)
    assert supervisor.log("talker").read_bytes()[:1] not in {b"", b"\0"}


_PARENT = """
    import sys, time
    from pathlib import Path
    from orchestrator.local import probes
    from orchestrator.local.service import Service, StopOrder
    from orchestrator.local.supervisor import Supervisor
    folder, program = Path(sys.argv[1]), sys.argv[2]
    supervisor = Supervisor(folder)
    argv = (sys.executable, "-c", program)
    supervisor.launch(Service("parent", "test", argv, probes.says("ready"), StopOrder.WORKER))
    supervisor.await_ready("parent")
    print("up", flush=True)
    time.sleep(300)
"""


def _started_elsewhere(folder: Path) -> subprocess.Popen[str]:
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PARENT), str(folder), textwrap.dedent(_WITH_CHILDREN)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    other.stdout.close()
    return other


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    other = _started_elsewhere(tmp_path)
    parent = _identity(tmp_path, "parent")
    assert parent is not None
    family = {parent, *_children_in(tmp_path / "logs" / "parent.log")}
    assert len(family) == 3
    other.kill()
    other.wait()
    assert not processes.await_end(family, 60)


def test_the_next_start_ends_what_even_the_watcher_could_not(tmp_path: Path) -> None:
    other = _started_elsewhere(tmp_path)
    parent = _identity(tmp_path, "parent")
    assert parent is not None
    family = {parent, *_children_in(tmp_path / "logs" / "parent.log")}
    itself = processes.identify(other.pid)
    watchers = processes.family([other.pid]) - family - {itself}
    assert len(watchers) == 1
    for victim in watchers:
        processes.send(victim, signal.SIGKILL)
    other.kill()
    other.wait()
    assert all(processes.alive(one) for one in family)
    left = roster.read(tmp_path)
    assert left is not None
    assert roster.sweep(left) > 0
    assert not [one for one in family if processes.alive(one)]
    assert roster.sweep(left) == 0


def test_a_watcher_that_is_killed_is_replaced(supervisor: Supervisor, tmp_path: Path) -> None:
    def watchers() -> frozenset[Identity]:
        current = roster.read(tmp_path)
        assert current is not None
        mine = processes.family([os.getpid()]) - {current.supervisor}
        return frozenset(one for one in mine if supervisor.stack in _command(one.pid))

    _until(lambda: len(watchers()) == 1)
    [before] = watchers()
    processes.send(before, signal.SIGKILL)
    _until(lambda: len(watchers() - {before}) == 1, round_of=supervisor)


def test_the_roster_on_disk_is_whole_whenever_it_is_read(supervisor: Supervisor, tmp_path: Path) -> None:
    for number in range(20):
        supervisor.publish({"api": f"http://127.0.0.1:{number}"})
        assert json.loads((tmp_path / "stack.json").read_text())["urls"]["api"].endswith(f":{number}")
    assert not list(tmp_path.glob("stack.json.*"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
