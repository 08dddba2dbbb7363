"""Real servers for the tests: one Postgres and one Redis for the whole session, fresh URLs for each test."""

from __future__ import annotations

import itertools
import secrets
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2

from orchestrator.local import ports, postgres, redis
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_DATABASES = 512
_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server of its own for this test session, with the settings that production has but for `no_sync`."""

    cluster: postgres.Cluster
    port: int

    def fresh(self, template: str = "template1") -> str:
        """URL of a new, empty database, or of a copy of `template` (milliseconds)."""
        name = f"test_{next(_serial)}"
        # Half the work of a copy that is written to the log as well.
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return self.cluster.url(self.port, database=name)

    def template(self, name: str, fill: Callable[[str], object]) -> str:
        """The name, for `fresh`, of a database made once by `fill(url)`, which leaves no connection open."""
        with closing(psycopg2.connect(self.cluster.dsn(self.port, database="postgres"))) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            made = cursor.fetchone() is not None
        if not made:
            partial = f"{name}_partial"
            postgres.create_database(self.cluster, self.port, partial)
            fill(self.cluster.url(self.port, database=partial))
            self.run(f'ALTER DATABASE "{partial}" RENAME TO "{name}"')
        return name

    def drop(self, url: str) -> None:
        """Away with it, whoever is still connected."""
        name = url.rpartition("/")[2]
        self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def run(self, statement: str) -> None:
        with closing(psycopg2.connect(self.cluster.dsn(self.port, database="postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A server of its own for this test session, with many logical databases."""

    server: redis.Server
    port: int

    def fresh(self) -> str:
        """URL of an empty logical database that no other test has had."""
        number = next(_serial)
        if number >= _DATABASES:
            raise AssertionError("more Redis databases were asked for than the server has")
        return self.server.url(self.port, database=number)


def no_sync(cluster: postgres.Cluster) -> None:
    """Its server leaves it to the system when to write. What is committed outlives the death of any process,
    which is all that tests bring about, though not the machine's; a commit takes a twentieth of the time, and
    dropping a database, which waits until everything is written, even less.
    """
    with (cluster.data / "postgresql.auto.conf").open("a") as file:
        file.write("fsync = off\n")


@contextmanager
def serve_postgres(folder: Path) -> Iterator[PostgresServer]:
    """Runs in `folder` until left; nothing of it remains."""
    home = folder / "postgres"
    cluster = postgres.prepare(home, secrets.token_urlsafe(16), say=print)
    no_sync(cluster)
    port = ports.choose(0)
    supervisor = Supervisor(folder)
    try:
        supervisor.discard(home.resolve())
        supervisor.launch(cluster.service(port))
        supervisor.await_ready("postgres")
        yield PostgresServer(cluster, port)
    finally:
        supervisor.stop()
        postgres.remove(home)


@contextmanager
def serve_redis(folder: Path) -> Iterator[RedisServer]:
    """Runs in `folder` until left."""
    server = redis.Server(redis.program(), folder / "redis", secrets.token_urlsafe(16), databases=_DATABASES)
    port = ports.choose(0)
    supervisor = Supervisor(folder)
    try:
        supervisor.launch(server.service(port))
        supervisor.await_ready("redis")
        yield RedisServer(server, port)
    finally:
        supervisor.stop()
