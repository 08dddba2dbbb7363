"""The whole of `up` as a process, on real servers; behind the verbs is `local_program.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from redis import Redis

from orchestrator.core.errors import Conflict, Unknown
from orchestrator.local import control, credentials, ports, postgres, processes, roster
from tests.acceptance.running import Doors, Program
from tests.integration.repositories import path_without_bubblewrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_UP = """
    import sys
    from pathlib import Path
    from orchestrator.config import Settings
    from orchestrator.core.errors import OrchestratorError
    from orchestrator.local.interrupts import StopAsked
    from orchestrator.local.stack import Options, Stack

    def say(line):
        print(line, flush=True)

    options = Options(program=(sys.executable, sys.argv[2]), flower_port=0, ephemeral="ephemeral" in sys.argv)
    work = (lambda: 7) if "work" in sys.argv else None
    try:
        with Stack(options, Settings(data_dir=Path(sys.argv[1]), api_port=0), say=say) as stack:
            stack.start()
            code = stack.run(work)
    except OrchestratorError as error:
        print(error, error.hint, flush=True)
        code = 1
    except StopAsked:
        code = 130
    sys.exit(code)
"""
_SERVERS = ("DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL", "ANTHROPIC_API_KEY")


class Up:
    """A running `up` and what it has printed so far."""

    def __init__(self, folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name not in _SERVERS}
        self._output = folder.parent / f"{folder.name}.{time.monotonic_ns()}.out"
        program = str(Path(__file__).with_name("local_program.py"))
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(_UP), str(folder), program, *words],
                env={**kept, "XDG_CONFIG_HOME": str(folder.parent / "config"), **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until(self, words: str) -> str:
        while words not in self.said:
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        return self.said

    def family(self) -> frozenset[processes.Identity]:
        return processes.family([self.process.pid])

    def stop(self, sign: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    postgres.remove(tmp_path / "data" / "postgres")


@pytest.fixture
def up(folder: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*words: str, environment: Mapping[str, str] | None = None) -> Up:
        started.append(Up(folder, *words, environment=environment))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that runs for all the tests that only look, or restart a part."""
    folder = tmp_path_factory.mktemp("shared") / "data"
    stack = Up(folder)
    stack.until(" ! model")
    yield stack
    stack.stop()
    postgres.remove(folder / "postgres")


def test_a_missing_sandbox_is_said_and_in_strict_mode_nothing_starts(
    up: Callable[..., Up], tmp_path: Path
) -> None:
    path = path_without_bubblewrap(tmp_path / "bare")
    refused = up(environment={"PATH": path, "ORCHESTRATOR_STRICT_SANDBOX": "true"})
    assert refused.process.wait() == 1
    assert "[sandbox-unavailable]" in refused.said
    assert "apt-get install bubblewrap" in refused.said
    assert " ✓ postgres" not in refused.said
    said = up(environment={"PATH": path}).until(" ! model")
    assert " ! sandbox    bubblewrap: not on PATH: agents' commands run with your own rights" in said


def test_it_starts_all_parts_and_ctrl_c_leaves_none_of_them(up: Callable[..., Up], folder: Path) -> None:
    stack = up()
    said = stack.until(" ! model")
    parts = ["postgres", "redis", "schema", "api", "gateway", "agents", "beat", "flower"]
    positions = [said.index(f" ✓ {part}") for part in parts]
    assert positions == sorted(positions)
    assert "(kept between runs)" in said
    names = [row.name for row in control.ps(folder)]
    assert names == [
        "supervisor",
        "postgres",
        "redis",
        "gateway",
        "api",
        "agent-1",
        "agent-2",
        "system",
        "beat",
        "flower",
    ]
    family = stack.family()
    current = roster.read(folder)
    assert current is not None
    assert stack.stop() == 130
    assert not [one for one in family if processes.alive(one)]
    assert not processes.marked(current.stack)
    assert control.ps(folder) == ()


def test_a_second_start_finds_ports_secrets_and_data(up: Callable[..., Up], folder: Path) -> None:
    first = up()
    first.until(" ! model")
    url = _database_url(folder)
    _execute(url, "CREATE TABLE kept AS SELECT 1 AS value")
    ports = _ports(folder)
    first.stop()
    up().until(" ! model")
    assert {**_ports(folder), "api": 0} == {**ports, "api": 0}
    assert _database_url(folder) == url
    _execute(url, "INSERT INTO kept VALUES (2)")


def test_no_secret_shows_in_a_command_line_or_in_the_output(shared: Up) -> None:
    made = credentials.load_or_make(shared.folder)
    lines = [Path(f"/proc/{one.pid}/cmdline").read_text() for one in shared.family()]
    assert any("worker" in line for line in lines)
    for name in credentials.Credentials.__dataclass_fields__:
        secret = getattr(made, name)
        assert not [line for line in lines if secret in line], name
        assert secret not in shared.said
    readable = [path for path in shared.folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert readable == []


def test_a_second_stack_on_the_same_data_is_refused(shared: Up) -> None:
    second = Up(shared.folder)
    assert second.process.wait() == 1
    assert "already-running" in second.said
    assert shared.process.poll() is None


def test_a_key_set_later_reaches_the_gateway_alone_by_a_restart(shared: Up) -> None:
    folder = shared.folder
    before = {row.name: row.pid for row in control.ps(folder)}
    given = {"ANTHROPIC_API_KEY": "a-key", "OTHER": "stays"}
    assert control.restart(folder, "gateway", given) == ("gateway",)
    assert control.restart(folder, "worker", given) == ("agent-1", "agent-2", "system")
    after = {row.name: row.pid for row in control.ps(folder)}
    assert {name for name in after if after[name] != before[name]} == {
        *("gateway", "agent-1", "agent-2", "system")
    }
    said = [line for _, line in control.logs(folder, ["gateway"]) if line.startswith("gateway")]
    assert said == ["gateway with no key", "gateway with a-key"]
    lines = [line for _, line in control.logs(folder, ["worker"]) if "agent-1" in line]
    assert [line.partition(" with ")[2] for line in lines] == ["no key is ready."] * 2
    assert not list((folder / "requests").iterdir())
    with pytest.raises(Unknown, match="unknown-service"):
        control.restart(folder, "nobody", {})


def test_down_stops_it_and_says_whether_there_was_anything(up: Callable[..., Up], folder: Path) -> None:
    stack = up()
    stack.until(" ! model")
    assert control.down(folder)
    assert stack.process.wait() == 130
    assert not control.down(folder)
    with pytest.raises(Conflict, match="not-running"):
        control.restart(folder, "api", {})


def test_a_second_ctrl_c_does_not_wait_for_slow_workers(up: Callable[..., Up]) -> None:
    stack = up(environment={"SLOW_WORKERS": "1"})
    stack.until(" ! model")
    family = stack.family()
    stack.process.send_signal(signal.SIGINT)
    stack.until("Stopping")
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait() == 130
    assert not [one for one in family if processes.alive(one)]
    again = up()
    again.until(" ! model")
    assert "healed" not in again.said


def test_what_a_killed_one_left_is_gone_and_the_next_one_starts(up: Callable[..., Up], folder: Path) -> None:
    first = up()
    first.until(" ! model")
    family = first.family()
    current = roster.read(folder)
    assert current is not None
    first.process.kill()
    first.process.wait()
    second = up()
    second.until(" ! model")
    assert not [one for one in family if processes.alive(one)]
    assert not processes.marked(current.stack)


def test_an_ephemeral_one_leaves_no_folder(up: Callable[..., Up], tmp_path: Path) -> None:
    stack = up("ephemeral", environment={"TMPDIR": str(tmp_path)})
    said = stack.until(" ! model")
    assert "(removed at the end)" in said
    [folder] = tmp_path.glob("orchestrator-*")
    data = (folder / "postgres").resolve()
    assert data.exists()
    stack.stop()
    assert not folder.exists()
    assert not data.exists()
    assert not (tmp_path / "config").exists()


def test_it_ends_with_the_code_of_the_work_it_was_given(up: Callable[..., Up]) -> None:
    assert up("work").process.wait() == 7


def test_servers_of_the_users_own_are_taken_instead(
    up: Callable[..., Up], folder: Path, database_url: str, redis_server: object
) -> None:
    url = redis_server.fresh()  # type: ignore[attr-defined]
    stack = up(environment={"DATABASE_URL": database_url, "CELERY_BROKER_URL": url})
    said = stack.until(" ! model")
    assert "DATABASE_URL" in said
    assert {row.name for row in control.ps(folder)} & {"postgres", "redis"} == set()
    assert database_url.partition("@")[0].rpartition(":")[2] not in said


def test_a_server_that_can_not_be_reached_is_named_without_its_password(up: Callable[..., Up]) -> None:
    stack = up(environment={"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/x"})
    assert stack.process.wait() == 1
    assert "postgres-unreachable" in stack.said
    assert "127.0.0.1:1" in stack.said
    assert "hunter2" not in stack.said


def test_a_busy_port_is_replaced_by_the_next_and_shown(up: Callable[..., Up], folder: Path) -> None:
    first = up()
    first.until(" ! model")
    port = _ports(folder)["redis"]
    first.stop()
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        said = up().until(" ! model")
    now = _ports(folder)["redis"]
    assert now != port
    assert f"127.0.0.1:{now}" in said


def test_memory_is_measured_for_each_process(shared: Up) -> None:
    rows = control.ps(shared.folder, measure=True)
    assert all(row.pss_bytes and row.pss_bytes > 0 for row in rows)


def test_the_embedded_redis_takes_only_its_password(shared: Up) -> None:
    port = _ports(shared.folder)["redis"]
    made = credentials.load_or_make(shared.folder)
    with closing(Redis(port=port, password=made.redis_password)) as client:
        assert client.ping()


def test_clients_of_this_user_find_the_key(shared: Up) -> None:
    folder = shared.folder
    told = (folder.parent / "config" / "orchestrator" / "credentials.toml").read_text()
    assert credentials.load_or_make(folder).api_key in told
    assert json.loads((folder / "stack.json").read_text())["urls"]["api"] in told


def _ports(folder: Path) -> Mapping[str, int]:
    current = roster.read(folder)
    assert current is not None
    return current.ports


def _database_url(folder: Path) -> str:
    password = credentials.load_or_make(folder).postgres_password
    return f"postgresql://orchestrator:{password}@127.0.0.1:{_ports(folder)['postgres']}/orchestrator"


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def test_a_port_that_a_stranger_takes_under_our_hands_is_given_up_for_another(
    up: Callable[..., Up], folder: Path, tmp_path: Path
) -> None:
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    stack = up(environment={"STRANGERS": str(strangers)})
    stack.until(" ! model")
    current = roster.read(folder)
    assert current is not None
    for name in ("api", "flower"):
        lost = int((strangers / name).read_text())
        assert f":{lost}" not in current.urls[name]
        assert f":{current.ports[name]}" in current.urls[name]
        with socket.create_connection(("127.0.0.1", current.ports[name]), timeout=5):
            pass


def test_two_whole_stacks_that_start_at_once_get_ports_of_their_own(tmp_path: Path) -> None:
    wanted = ports.choose(21_000)
    words = ("up", "--ephemeral", "--workers", "1", "--port", str(wanted))
    programs = [Program(words, tmp_path / name) for name in ("one", "other")]
    try:
        for program in programs:
            said = program.until_said("Ctrl-C stops everything and removes it.")
            assert f"ORCHESTRATOR_DATA_DIR={program.data})" in said, "where a client finds it"
        doors = [Doors(program.data) for program in programs]
        for name in ("api", "flower"):
            assert len({door.urls[name] for door in doors}) == 2, [door.urls for door in doors]
        for door, other in zip(doors, reversed(doors), strict=True):
            assert door.get("/tasks")["data"] == []
            key = {"Authorization": f"Bearer {other.secrets['api_key']}"}
            refused = door.api.get("/api/v1/tasks", headers=key)
            assert refused.status_code == 401, "each answers for itself"
            assert door.flower.get("/api/workers").status_code == 200
            door.close()
    finally:
        for program in programs:
            program.stop()
