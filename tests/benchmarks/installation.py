"""A private installation: Postgres and Redis in a folder of their own, and processes that can be hurt."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import psycopg2
from redis import Redis

from orchestrator import bootstrap
from orchestrator.bootstrap import Wiring
from orchestrator.config import Settings
from orchestrator.db import connect, upgrade
from orchestrator.local import ports, postgres, probes, processes, redis
from orchestrator.local.processes import Identity
from orchestrator.local.service import Service, StopOrder
from orchestrator.local.supervisor import Supervisor
from orchestrator.queues.names import Lane
from orchestrator.queues.settings import WORKER_ENVIRONMENT
from orchestrator.queues.topology import topology
from tests.servers import no_sync

REPOSITORY: Final = Path(__file__).parent.parent.parent
WORKER_APP: Final = "tests.benchmarks.worker"
LANES: Final = tuple(lane for lane in Lane if lane is not Lane.SYSTEM)
SYNCED = True
"""Postgres as users have it is what gets measured; a test that asks only whether it does can do without."""
_OURS: Final = (
    "ORCHESTRATOR_",
    "DATABASE_URL",
    "CELERY_",
    "REDIS_URL",
    "ANTHROPIC_",
    "OPENAI_",
    "MAX_CONCURRENT_",
)


@dataclass
class Installation:
    """Servers, their addresses, and the processes of ours that run on them. Used by one thread."""

    folder: Path
    supervisor: Supervisor
    cluster: postgres.Cluster
    redis: redis.Server
    ports: Mapping[str, int]
    environment: Mapping[str, str]
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        return self.environment["ORCHESTRATOR_DATABASE_URL"]

    @property
    def broker_url(self) -> str:
        return self.environment["ORCHESTRATOR_BROKER_URL"]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def wiring(self, application: str) -> Wiring:
        """As a process of this installation would have it, for use in this one."""
        values = {
            key.removeprefix("ORCHESTRATOR_").lower(): value
            for key, value in self.environment.items()
            if key.startswith("ORCHESTRATOR_")
        }
        return bootstrap.load(application, Settings(**values))  # type: ignore[arg-type]

    def client(self) -> Redis:
        return Redis.from_url(self.broker_url)

    def by_way_of(self, found: Mapping[str, int]) -> dict[str, str]:
        """The servers' addresses for a process that reaches them by other ports, server → port."""
        return {
            "ORCHESTRATOR_DATABASE_URL": self.cluster.url(found["postgres"]),
            "ORCHESTRATOR_BROKER_URL": self.redis.url(found["redis"]),
        }

    # ---- processes of ours

    def worker(
        self,
        name: str,
        lanes: tuple[Lane, ...] = LANES,
        *,
        slots: int = 1,
        pool: str = "prefork",
        extra: Mapping[str, str] | None = None,
        by_celery: bool = False,
    ) -> Service:
        """`by_celery`: by Celery's own program, which takes longer to start, not as ours runs it."""
        queues = ",".join(queue.value for queue in topology(self.broker_url).consumed(lanes))
        program, more = (("tests.integration.celery_worker", WORKER_APP), ())
        if by_celery:
            program, more = ("celery", "-A", WORKER_APP, "worker"), ("--without-gossip", "--without-mingle")
        return Service(
            name=name,
            kind="worker",
            argv=(
                *(sys.executable, "-m", *program, "--loglevel", "INFO"),
                *("--queues", queues, "--concurrency", str(slots), "--pool", pool),
                *("--hostname", f"{name}@%h", *more),
            ),
            ready=probes.says(r" ready\."),
            stop_order=StopOrder.WORKER,
            env={**self.environment, **WORKER_ENVIRONMENT, **(extra or {})},
            folder=REPOSITORY,
            stop_seconds=30.0,
        )

    def beat(self, name: str = "beat", extra: Mapping[str, str] | None = None) -> Service:
        schedule = str(self.folder / f"{name}-schedule")
        return Service(
            name=name,
            kind="beat",
            argv=(sys.executable, "-m", "tests.benchmarks.beat", schedule),
            ready=probes.says(r"beat: Starting"),
            stop_order=StopOrder.BEAT,
            env={**self.environment, **(extra or {})},
            folder=REPOSITORY,
        )

    def run(self, *wanted: Service) -> None:
        """Starts them all, then waits until all are ready."""
        for service in wanted:
            self.services[service.name] = service
            self.supervisor.launch(service)
        for service in wanted:
            self.supervisor.await_ready(service.name)

    def pid(self, name: str) -> int:
        return self.supervisor._runs[name].process.pid

    def children(self, name: str) -> list[Identity]:
        """The pool's processes of a worker, without what those have started."""
        main = self.pid(name)
        return sorted(
            (one for one in processes.family([main]) if one.pid != main and _parent(one.pid) == main),
            key=lambda one: one.pid,
        )

    def renew(self, name: str) -> None:
        """Whatever is left of it is killed, and it starts again; nobody waits for that."""
        self.supervisor.forget(name)
        self.supervisor.launch(self.services[name])

    def leave(self, *names: str) -> None:
        """Ends them in order, for good."""
        self.supervisor._end([self.supervisor._runs.pop(name) for name in names], orderly=True)

    def strays(self) -> list[Identity]:
        """Processes that bear this installation's mark and descend from none that runs on purpose."""
        mains = [run.process.pid for run in self.supervisor._runs.values()]
        known = processes.family([*mains, os.getpid()])
        return sorted(processes.marked(self.supervisor.stack) - known, key=lambda one: one.pid)

    # ---- servers

    def beside(self, name: str, database: int) -> Installation:
        """The same servers with an empty database and a Redis database of its own."""
        port = self.ports["postgres"]
        postgres.create_database(self.cluster, port, name)
        _migrate(url := self.cluster.url(port, database=name))
        broker = self.redis.url(self.ports["redis"], database=database)
        own = {
            "ORCHESTRATOR_DATABASE_URL": url,
            "ORCHESTRATOR_BROKER_URL": broker,
            "ORCHESTRATOR_DATA_DIR": str(self.folder / f"data-{name}"),
        }
        return replace(self, environment={**self.environment, **own})

    def tell_commit_times(self) -> None:
        """From now on Postgres knows when each row was committed; what was before, it doesn't."""
        with closing(psycopg2.connect(self.cluster.dsn(self.ports["postgres"]))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        self.restart_postgres_at_once()

    def restart_postgres_at_once(self) -> None:
        """As after a power cut: what was committed is there, what was under way is not."""
        self.renew("postgres")
        self.supervisor.await_ready("postgres")

    def lose_redis(self) -> None:
        """Killed, its files gone, started again with nothing in it."""
        os.kill(self.pid("redis"), signal.SIGKILL)
        self.supervisor.forget("redis")
        for left in self.redis.home.iterdir():
            if left.name != "redis.conf":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.supervisor.launch(self.services["redis"])
        self.supervisor.await_ready("redis")


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


@contextmanager
def installed(*, synced: bool | None = None, **settings: str) -> Iterator[Installation]:
    """An installation with an empty, migrated database. `settings` are ORCHESTRATOR_… without that prefix.
    `synced`: SYNCED, unless something else is wanted."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    quiet = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(_OURS)}
    cluster = postgres.prepare(folder / "postgres", secrets.token_urlsafe(16), say=_to_stderr)
    if not (SYNCED if synced is None else synced):
        no_sync(cluster)
    server = redis.Server(redis.program(), folder / "redis", secrets.token_urlsafe(16))
    found = {"postgres": ports.choose(0), "redis": ports.choose(0)}
    supervisor = Supervisor(folder, say=_to_stderr)
    supervisor.discard(cluster.data.parent, folder)
    broker = server.url(found["redis"])
    environment = {
        "ORCHESTRATOR_DATABASE_URL": cluster.url(found["postgres"]),
        "ORCHESTRATOR_BROKER_URL": broker,
        "ORCHESTRATOR_MESSAGE_SECRET": secrets.token_hex(16),
        "ORCHESTRATOR_DATA_DIR": str(folder / "data"),
        "ORCHESTRATOR_WAITS_FOR_RESULTS": "false",
        "PYTHONPATH": str(REPOSITORY),
        **{f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()},
    }
    here = Installation(folder, supervisor, cluster, server, found, environment)
    try:
        here.run(cluster.service(found["postgres"]), server.service(found["redis"]))
        postgres.create_database(cluster, found["postgres"])
        _migrate(here.database_url)
        yield here
    finally:
        supervisor.abort()
        postgres.remove(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.update(quiet)


def _migrate(url: str) -> None:
    engine = connect.create(url, application="benchmarks")
    upgrade.upgrade(engine)
    engine.dispose()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
