"""An external agent's program: what it sees, what it reaches, and that nothing of it is left."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from orchestrator.agents import door
from orchestrator.agents.door import Door
from orchestrator.agents.launch import Confines, Enclosure, enclosed
from orchestrator.core.assignment import ModelAccess
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.homes import HomeOwner
from orchestrator.workspaces.kin import marked
from orchestrator.workspaces.programs import RUN_MARK
from tests.engine_world import Wire, assignment
from tests.integration.repositories import installation, owner, repository, without_bubblewrap

STEP = "step-1"


class Gateway(http.server.ThreadingHTTPServer):
    """Answers each GET with what the test put in `answers`, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.answers: list[tuple[int, dict[str, str]]] = [(200, {})]
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answering(http.server.BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        answers = self.server.answers
        status, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        body = b"HTTP/1.1 402 Payment Required\r\nx-orchestrator-code: budget-exhausted\r\n\r\n"
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["bubblewrap", "none"])
def workspaces(request: pytest.FixtureRequest, tmp_path: Path) -> Workspaces:
    if request.param == "none":
        return installation(tmp_path / "root", sandbox=without_bubblewrap(tmp_path / "plain"))
    return _confined(tmp_path)


def _confined(tmp_path: Path) -> Workspaces:
    made = installation(tmp_path / "root")
    if made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    return made


@pytest.fixture
def enclosure(workspaces: Workspaces, gateway: Gateway, tmp_path: Path) -> Iterator[Enclosure]:
    with opened(workspaces, gateway, tmp_path) as found:
        yield found


@pytest.fixture
def confined(gateway: Gateway, tmp_path: Path) -> Iterator[Enclosure]:
    with opened(_confined(tmp_path), gateway, tmp_path) as found:
        yield found


@contextmanager
def opened(workspaces: Workspaces, gateway: Gateway, tmp_path: Path) -> Iterator[Enclosure]:
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a.txt": "a\n"})), None)
    workspace = workspaces.open(owner(STEP), base.mirror, base.commit)
    access = ModelAccess(gateway.url, "run-token")
    with enclosed(workspace, workspaces.homes, assignment(step_id=STEP), access, Wire()) as found:
        yield found


def said(
    enclosure: Enclosure,
    script: str,
    *arguments: str,
    say: bytes = b"",
    confines: Confines | None = None,
    **environment: str,
) -> str:
    """What a Python script printed in there; it has to end well."""
    running = enclosure.start(
        [sys.executable, "-c", script, *arguments], environment, confines=confines or Confines()
    )
    try:
        running.stdin.write(say)
        running.stdin.close()
        text = running.stdout.read()
        wrong = running.stderr.read()
        assert running.wait(10) == 0, wrong.decode()
    finally:
        running.end()
    return text.decode()


def test_it_starts_in_its_files_with_a_home_that_stays_and_nothing_of_our_environment(
    enclosure: Enclosure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-real")
    script = (
        "import json, os, pathlib; pathlib.Path.home().joinpath('kept').touch();"
        "print(json.dumps([os.getcwd(), sorted(os.listdir()), dict(os.environ)]))"
    )
    folder, names, environment = json.loads(said(enclosure, script, TOKEN="run-token"))
    assert folder == enclosure.folder
    assert names == [".git", "a.txt"]
    assert environment["TOKEN"] == "run-token"
    assert environment[RUN_MARK] == enclosure.run_id
    assert environment["HOME"] == enclosure.home
    assert "ANTHROPIC_API_KEY" not in environment
    assert (enclosure.home_on_disk / "kept").exists()


def test_its_environment_is_in_no_command_line(enclosure: Enclosure) -> None:
    running = enclosure.start(["/bin/sh", "-c", "echo ready; cat"], {"TOKEN": "a-token-to-hide"})
    try:
        assert running.stdout.readline() == b"ready\n"
        lines = [at.read_bytes() for at in _processes() if at.exists()]
    finally:
        running.end()
    assert not [line for line in lines if b"a-token-to-hide" in line]


def _processes() -> list[Path]:
    return [at / "cmdline" for at in Path("/proc").iterdir() if at.name.isdigit()]


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status, flush=True)"
CALL = FETCH.replace("sys.argv[1])", "sys.argv[1], data=b'{}' * 100_000)")
SUPPRESS = "import contextlib\nwith contextlib.suppress(Exception):\n    "


CONFINES = Confines(sealed=[PurePosixPath(".config/agent")], hidden=[PurePosixPath(".agent/plugins")])


def test_what_is_sealed_is_read_and_what_is_hidden_is_not_seen_and_neither_can_be_written(
    confined: Enclosure,
) -> None:
    tree = confined._workspace.tree
    for folder in (confined.home_on_disk / ".config/agent", tree / ".agent/plugins"):
        folder.mkdir(parents=True)
        (folder / "found").write_text("found\n")
    script = (
        "import os, pathlib\n"
        "for at in (pathlib.Path.home() / '.config/agent', pathlib.Path('.agent/plugins')):\n"
        "    try: (at / 'new').touch()\n"
        "    except OSError as error: print(os.listdir(at), error.strerror)\n"
    )
    assert said(confined, script, confines=CONFINES).splitlines() == [
        "['found'] Read-only file system",
        "[] Read-only file system",
    ]
    assert (tree / ".agent/plugins/found").exists()


@pytest.mark.parametrize("place", ["home", "tree"])
def test_a_link_where_leave_could_lie_is_refused_and_not_followed(
    confined: Enclosure, tmp_path: Path, place: str
) -> None:
    at = confined.home_on_disk / ".config" if place == "home" else confined._workspace.tree / ".agent"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    at.symlink_to(elsewhere)
    with pytest.raises(WorkspaceFault) as raised:
        confined.start(["true"], {}, confines=CONFINES)
    assert raised.value.code == "agent-settings-open"
    assert list(elsewhere.iterdir()) == []


def test_it_reaches_the_gateway(enclosure: Enclosure, gateway: Gateway) -> None:
    assert said(enclosure, FETCH, f"{enclosure.base_url}/v1/models").strip() == "200"
    assert gateway.seen == ["/v1/models"]


def test_it_reaches_nothing_else(confined: Enclosure, gateway: Gateway) -> None:
    script = (
        "import socket, sys\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
        "except OSError as error: print(type(error).__name__)\n"
        "try: socket.create_connection(('192.0.2.1', 80), 5)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    refused = said(confined, script, str(gateway.server_address[1])).split("\n")
    assert refused[:2] == ["ConnectionRefusedError", "Network is unreachable"]


def test_why_the_gateway_refused_is_read_at_the_door_and_a_body_can_not_pass_for_it(
    enclosure: Enclosure, gateway: Gateway
) -> None:
    gateway.answers = [
        (200, {}),
        (404, {}),
        (402, {"x-orchestrator-code": "budget-exhausted", "retry-after": "7"}),
    ]
    said(enclosure, CALL, f"{enclosure.base_url}/v1/messages")
    assert enclosure.door.refusal_since(0) is None
    said(enclosure, SUPPRESS + FETCH, f"{enclosure.base_url}/v1/models")
    assert enclosure.door.refusal_since(0) is None
    said(enclosure, SUPPRESS + CALL, f"{enclosure.base_url}/v1/messages")
    refusal = enclosure.door.refusal_since(1)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (402, "budget-exhausted")
    assert refusal.retry_after is not None
    assert refusal.retry_after.total_seconds() == 7


def test_a_gateway_that_never_shakes_hands_holds_no_connection_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "CONNECT_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Door(f"https://127.0.0.1:{silent.getsockname()[1]}", None) as opened,
        socket.create_connection(("127.0.0.1", opened.port), timeout=60) as agents,
    ):
        assert agents.recv(1) == b""


def test_exit_codes_and_input_pass_through(enclosure: Enclosure) -> None:
    running = enclosure.start(["/bin/sh", "-c", 'read line; echo "heard $line"; exit 7'], {})
    try:
        running.stdin.write(b"this\n")
        assert running.stdout.read() == b"heard this\n"
        assert running.wait(10) == 7
    finally:
        running.end()


def test_a_signal_reaches_the_program_itself(enclosure: Enclosure) -> None:
    script = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    running = enclosure.start(["/bin/sh", "-c", script], {})
    assert running.stdout.readline() == b"ready\n"
    assert running.end(closing=0.1, terminating=10) == 3


def test_what_detached_itself_and_ignores_signals_is_ended_too(enclosure: Enclosure) -> None:
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo away; exec sleep 600' & wait; exec sleep 600"
    running = enclosure.start(["/bin/sh", "-c", script], {})
    assert running.stdout.readline() == b"away\n"
    assert running.left()
    assert running.end(closing=0.1, terminating=0.1) is None
    assert running.left() == []


def test_a_later_claim_ends_what_an_earlier_one_left_on_this_machine(
    workspaces: Workspaces, gateway: Gateway, tmp_path: Path
) -> None:
    with opened(workspaces, gateway, tmp_path) as earlier:
        running = earlier.start(["/bin/sh", "-c", "echo ready; exec sleep 600"], {})
        try:
            assert running.stdout.readline() == b"ready\n"
            again = workspaces.open(owner(STEP, attempt=2), _mirror(workspaces, tmp_path), _head(tmp_path))
            later = assignment(step_id=STEP, fence=9)
            with enclosed(again, workspaces.homes, later, ModelAccess(gateway.url, "t"), Wire()):
                assert running.wait(10) is not None
        finally:
            running.end()


def _mirror(workspaces: Workspaces, tmp_path: Path) -> str:
    return workspaces.fetch(str(tmp_path / "source"), None).mirror


def _head(tmp_path: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(tmp_path / "source"), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


WORKER = """
import os, sys, time
from pathlib import Path
from orchestrator.agents.launch import enclosed
from orchestrator.core.assignment import ModelAccess
from orchestrator.core.workspace import WorkspaceFault
from tests.engine_world import Wire, assignment
from tests.integration.repositories import installation, owner
root, source, url = sys.argv[1:]
workspaces = installation(Path(root))
base = workspaces.fetch(source, None)
workspace = workspaces.open(owner("step-1"), base.mirror, base.commit)
with enclosed(workspace, workspaces.homes, assignment(step_id="step-1"), ModelAccess(url, "t"), Wire()) as at:
    running = at.start(["/bin/sh", "-c", "echo ready; setsid sleep 600 & wait"], {})
    running.stdout.readline()
    print(at.run_id, flush=True)
    time.sleep(600)
"""


def test_a_killed_worker_takes_its_agent_with_it(gateway: Gateway, tmp_path: Path) -> None:
    _confined(tmp_path)
    source = repository(tmp_path / "source", {"a.txt": "a\n"})
    words = [sys.executable, "-c", WORKER, str(tmp_path / "root"), str(source), gateway.url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as worker:
        assert worker.stdout is not None
        mark = f"{RUN_MARK}={worker.stdout.readline().strip()}"
        assert marked(mark)
        worker.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []


def test_without_a_sandbox_the_next_worker_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    mark = f"{RUN_MARK}={_ended_pid()}-nobody-1"
    left = subprocess.Popen(["sleep", "600"], env=dict([mark.split("=")]), start_new_session=True)
    try:
        without_bubblewrap(tmp_path / "plain")
        assert left.wait(10) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def _ended_pid() -> int:
    with subprocess.Popen(["true"]) as ended:
        pass
    return ended.pid


def test_a_home_goes_when_its_step_is_over_and_not_before(tmp_path: Path) -> None:
    homes = installation(tmp_path / "root").homes
    over, going = HomeOwner("task", "over"), HomeOwner("task", "going")
    (homes.open(over) / "session").touch()
    kept = homes.open(going) / "session"
    kept.touch()
    assert homes.sweep(lambda owners: {owner for owner in owners if owner == going}) == ["over"]
    assert kept.exists()
    assert homes.open(going) == kept.parent


def test_a_home_can_be_opened_while_another_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = installation(tmp_path / "root").homes
    over, going = HomeOwner("task", "over"), HomeOwner("task", "going")
    (homes.open(over) / "session").touch()
    opened: list[Path] = []

    def killed(folder: Path) -> None:
        other = threading.Thread(target=lambda: opened.append(homes.open(going)), daemon=True)
        other.start()
        other.join(10)
        raise KeyboardInterrupt(folder.name)

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.workspaces.homes.remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            homes.sweep(lambda _: ())
    assert [path.name for path in opened] == ["home"]
    assert list(homes.open(over).iterdir()) == [], "the step's old home is nobody's"

    left = homes.sweep(lambda owners: owners)
    assert len(left) == 1, "what the killed sweep left is found by the next"
    assert homes.sweep(lambda owners: owners) == []


def test_the_door_closes_with_the_enclosure(workspaces: Workspaces, gateway: Gateway, tmp_path: Path) -> None:
    with opened(workspaces, gateway, tmp_path) as enclosure:
        path, port = enclosure.door.path, None if enclosure.door.path else enclosure.door.port
    if path is not None:
        assert not path.exists()
    else:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port or 0), 5)
