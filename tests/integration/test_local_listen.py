"""`up --listen`, seen from another machine: a network namespace that is linked to this one."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from orchestrator.local import ports, postgres, redis
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
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
