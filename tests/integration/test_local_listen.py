"""`up --listen`, seen from another machine: a network namespace that is linked to this one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.local import ports, postgres, redis
from orchestrator.local.supervisor import Supervisor
from tests.acceptance.running import OURS, recorded, until, up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="making a network takes root and ip (iproute2)"
)

_VISIT = """
import sys, psycopg2
from redis import Redis
database, broker = sys.argv[1:]
connection = psycopg2.connect(database)
cursor = connection.cursor()
cursor.execute("SELECT 'postgres'")
print(*cursor.fetchone())
connection.close()
with Redis.from_url(broker) as client:
    print(client.echo("redis").decode())
"""


@contextmanager
def _other_machine() -> Iterator[tuple[str, str]]:
    """The namespace's name, and our address on the network between us and it."""
    mark = secrets.token_hex(3)
    space, ours, theirs = f"orc-{mark}", f"orca{mark}", f"orcb{mark}"
    subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    _ip("netns", "add", space)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
        _ip("addr", "add", f"{subnet}.1/24", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", space, "addr", "add", f"{subnet}.2/24", "dev", theirs)
        _ip("-n", space, "link", "set", theirs, "up")
        yield space, f"{subnet}.1"
    finally:
        subprocess.run(["ip", "link", "del", ours], check=False, capture_output=True)
        _ip("netns", "del", space)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"this machine lets nobody make a network: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def _visit(space: str, database: str, broker: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", space, sys.executable, "-c", _VISIT, database, broker],
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_machine_gets_in_with_the_passwords_and_only_when_asked_for(tmp_path: Path) -> None:
    cluster = postgres.prepare(tmp_path / "postgres", "secret", say=print)
    server = redis.Server(redis.program(), tmp_path / "redis", "secret")
    supervisor = Supervisor(tmp_path)
    try:
        with _other_machine() as (space, address):
            for listen in (address, None):
                hosts = (address, "127.0.0.1")
                database_port, broker_port = ports.choose(0, hosts=hosts), ports.choose(0, hosts=hosts)
                supervisor.launch(cluster.service(database_port, listen=listen))
                supervisor.launch(server.service(broker_port, listen=listen))
                supervisor.await_ready("postgres")
                supervisor.await_ready("redis")
                there = (
                    cluster.dsn(database_port, host=address, database="postgres"),
                    server.url(broker_port, host=address),
                )
                visit = _visit(space, *there)
                if listen is None:
                    assert "Connection refused" in visit.stderr
                    break
                assert visit.stdout.split() == ["postgres", "redis"], visit.stderr
                stranger = _visit(space, *(url.replace("secret", "guess") for url in there))
                assert "password authentication failed" in stranger.stderr
                supervisor.forget("postgres")
                supervisor.forget("redis")
    finally:
        supervisor.stop()
        postgres.remove(tmp_path / "postgres")


# --- a whole worker there -----------------------------------------------------------------------------------

_SETTING = re.compile(r"^   export (ORCHESTRATOR_\w+)='(.*)'$", re.MULTILINE)


@contextmanager
def _worker_there(space: str, folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[Any, Path]]:
    """`orchestrator worker` in that namespace, with these settings and nothing else of ours; its log."""
    folder.mkdir()
    log = folder / "log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [sys.executable, "-P", "-m", "orchestrator", "worker", "--name", "elsewhere", "-c", "2"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["ip", "netns", "exec", space, *command],
            env={**kept, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **settings},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def test_a_worker_on_another_machine_carries_out_steps_with_the_settings_that_were_printed(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with _other_machine() as (space, address):
        words = ("--ephemeral", "--no-flower", "--workers", "1", "--port", str(ports.choose(0)))
        here = tmp_path / "here"
        with up(here, *words, "--listen", address, artifact_url=shared.as_uri()) as (program, doors):
            settings = dict(_SETTING.findall(program.said))
            assert settings["ORCHESTRATOR_ARTIFACT_URL"] == shared.as_uri()
            assert f"@{address}:" in settings["ORCHESTRATOR_DATABASE_URL"]
            with _worker_there(space, tmp_path / "there", settings) as (process, log):
                until(
                    lambda: " ready." in log.read_text() or process.poll() is not None, "ready", log.read_text
                )
                assert process.poll() is None, log.read_text()
                # Here is one slot for four tasks: there must do some of it.
                requests = [recorded("fix-bug", tmp_path / f"repository-{number}") for number in range(4)]
                tasks = [doors.create(**request)["id"] for request in requests]
                ended = [doors.until_status(task, "completed") for task in tasks]
            steps = [step for task in ended for step in task["steps"]]
            places = {step["agent_id"].partition("@")[0] for step in steps if step["commit"]}
            assert "elsewhere" in places, "its commits reached the branch by the store that both have"
            assert "agent-1" in places

            private = {**settings, "ORCHESTRATOR_ARTIFACT_URL": (tmp_path / "private").as_uri()}
            with _worker_there(space, tmp_path / "refused", private) as (process, log):
                assert process.wait(60) != 0
            said = log.read_text()
            assert "This worker can't start:" in said
            assert "isn't the store of this installation" in said
            assert "Give every worker the same artifact URL" in said
            for secret in doors.secrets.values():
                assert secret not in said
