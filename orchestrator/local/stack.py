"""`orchestrator up`: everything that an installation needs, on this machine, in one terminal.

    with Stack(options, settings) as stack:  # Ctrl-C and `orchestrator down` are handled from here on
        stack.start()                        # returns when all of it is ready
        code = stack.run(work)               # keeps it running until `work` returns, or until asked to stop

Leaving the block stops it in order: workers, beat, Flower, gateway, API, Redis, Postgres. Asked again, it
stops now.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from orchestrator.core.errors import Conflict, OrchestratorError, Unavailable
from orchestrator.local import control, credentials, doctor, ports, postgres, probes, redis, roster
from orchestrator.local.doctor import Level
from orchestrator.local.interrupts import Interrupts, StopAsked
from orchestrator.local.report import Report, short
from orchestrator.local.services import PROGRAM, Processes
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from orchestrator.config import Settings
    from orchestrator.local.service import Service

FLOWER_PORT: Final = 5555

_LOOK_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.02
_PORT_TRIES: Final = 5
_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides; the rest is in the settings.

    `listen` is an address of this machine on which Postgres and Redis are opened to others. `program` is what
    the verbs api, gateway, worker, beat, flower and db are given to.
    """

    workers: int = 2
    concurrency: int = 1
    flower: bool = True
    flower_port: int = FLOWER_PORT
    ephemeral: bool = False
    listen: str | None = None
    program: tuple[str, ...] = PROGRAM


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the servers are, passwords included."""

    database: str
    broker: str
    result: str


@dataclass(slots=True)
class _Server:
    """A service that listens on a port: `make` gives it for one, `port` is the one that it has."""

    name: str
    preferred: int
    hosts: tuple[str, ...]
    make: Callable[[int], Service]
    port: int = 0


class Stack:
    """See the module's docstring. `say` prints a line."""

    def __init__(self, options: Options, settings: Settings, *, say: Callable[[str], None] = print) -> None:
        self._options = options
        self._settings = settings
        self._say = say
        self._report = Report(say)
        self._interrupts = Interrupts()
        self._supervisor: Supervisor | None = None
        self._interrupted = False
        self._reserved: dict[str, ports.Reservation] = {}

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        try:
            self.data_dir = self._claim_folder()
        except BaseException:
            self._interrupts.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            os.close(self._lock)
            self._interrupts.__exit__(kind, error, trace)

    def start(self) -> None:
        """Starts it all, a line for each part. Raises OrchestratorError, or StopAsked when interrupted."""
        self._report.greet(self.data_dir, ephemeral=self._options.ephemeral)
        sandbox = doctor.sandbox(self._settings)
        if sandbox.level is Level.ERROR:
            raise Unavailable("sandbox-unavailable", f"{sandbox.what}: {sandbox.why}", sandbox.fix)
        self._heal()
        self.credentials = credentials.load_or_make(self.data_dir)
        supervisor = Supervisor(self.data_dir, say=self._say, wait=self._interrupts.wait)
        self._supervisor = supervisor
        self._requests = control.Requests(self.data_dir)
        self.urls = self._start_servers(supervisor)
        self.environment = self._environment(self.urls)
        self._migrate()
        self._start_processes(supervisor)
        self._report.sandbox(sandbox)
        self._report.model(self._settings)
        if self._options.listen:
            self._report.other_machines(self._options.listen, self.environment, self._settings.artifact_url)

    def run(self, work: Callable[[], int] | None = None) -> int:
        """Supervises until asked to stop (130), or until `work`, run in a thread, returns its exit code."""
        if self._supervisor is None:
            raise AssertionError("start() comes first")
        task = _Task(work) if work else None
        try:
            while task is None or not task.done:
                self._interrupts.wait(_POLL_SECONDS * 5 if task else _LOOK_SECONDS)
                self._supervisor.look()
                self._serve_requests(self._supervisor)
        except StopAsked:
            self._interrupted = True
            return _INTERRUPTED
        return task.result()

    def stop(self) -> None:
        """In order, or at once when asked again meanwhile. Leaves no process. Safe to call twice."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            self._say(" Stopping: workers first, then the servers. Ctrl-C again stops at once.")
            try:
                supervisor.stop()
            except StopAsked:
                supervisor.abort()
            self._say(
                " Stopped."
                + ("" if self._options.ephemeral else f" The data stays in {short(self.data_dir)}")
            )
        for reservation in self._reserved.values():
            reservation.close()
        if self._options.ephemeral and self.data_dir.exists():
            postgres.remove(self.data_dir / "postgres")
            shutil.rmtree(self.data_dir, ignore_errors=True)

    # ---- the folder

    def _claim_folder(self) -> Path:
        """Ours alone until the lock's file is closed, which the system does for whoever is killed."""
        if self._options.ephemeral:
            folder = Path(tempfile.mkdtemp(prefix="orchestrator-"))
        else:
            folder = self._settings.data_dir
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Unavailable(
                "no-data-folder",
                f"Can't use {folder} for data ({error.strerror}).",
                "Choose another folder: --data DIR",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            current = roster.read(folder)
            raise Conflict(
                "already-running",
                f"A stack already runs for {folder}{f' (pid {current.supervisor.pid})' if current else ''}.",
                "See it: orchestrator ps   Stop it: orchestrator down   A second one: --data DIR",
            ) from None
        return folder

    def _heal(self) -> None:
        left = roster.read(self.data_dir)
        if left and (ended := roster.sweep(left)):
            self._say(f" ! healed     ended {ended} processes that a killed run had left")

    # ---- the servers

    def _start_servers(self, supervisor: Supervisor) -> Urls:
        database = self._settings.database_url
        broker = self._settings.broker_url
        result = self._settings.result_url
        database_url = database.get_secret_value() if database else self._start_postgres(supervisor)
        if database:
            self._report.line(
                "postgres", f"yours (DATABASE_URL)     {probes.reach('postgres', database_url)}"
            )
        if broker:
            broker_url = broker.get_secret_value()
            self._report.line("broker", f"yours (CELERY_BROKER_URL) {probes.reach('broker', broker_url)}")
        if result:
            result_url = result.get_secret_value()
        elif broker and broker_url.startswith("redis"):
            result_url = broker_url
        else:
            result_url = self._start_redis(supervisor)
        return Urls(database_url, broker_url if broker else result_url, result_url)

    def _start_postgres(self, supervisor: Supervisor) -> str:
        began = time.monotonic()
        cluster = postgres.prepare(
            self.data_dir / "postgres",
            self.credentials.postgres_password,
            say=lambda text: self._say(f"   {text}"),
        )
        if self._options.ephemeral:
            supervisor.discard(cluster.data.parent, self.data_dir)
        port = self._serve(
            supervisor,
            "postgres",
            postgres.PREFERRED_PORT,
            lambda port: cluster.service(port, listen=self._options.listen),
        )
        postgres.create_database(cluster, port)
        version = postgres.server_version(cluster, port)
        self._report.line(
            "postgres", f"{version:<6} embedded          127.0.0.1:{port}", time.monotonic() - began
        )
        return cluster.url(port)

    def _start_redis(self, supervisor: Supervisor) -> str:
        began = time.monotonic()
        server = redis.Server(redis.program(), self.data_dir / "redis", self.credentials.redis_password)
        port = self._serve(
            supervisor,
            "redis",
            redis.PREFERRED_PORT,
            lambda port: server.service(port, listen=self._options.listen),
        )
        version = redis.server_version(server.program)
        self._report.line(
            "redis", f"{version:<6} embedded          127.0.0.1:{port}", time.monotonic() - began
        )
        return server.url(port)

    def _serve(
        self, supervisor: Supervisor, name: str, preferred: int, make: Callable[[int], Service]
    ) -> int:
        """On the port it had last, if that is free."""
        hosts = ("127.0.0.1", self._options.listen) if self._options.listen else ("127.0.0.1",)
        last = 0 if self._options.ephemeral else supervisor.ports.get(name, preferred)
        server = _Server(name, last, hosts, make)
        self._launch(supervisor, server)
        self._await(supervisor, server)
        return server.port

    def _launch(self, supervisor: Supervisor, server: _Server) -> None:
        """On a port that stays reserved for it as long as this stack runs."""
        if server.name in self._reserved:
            self._reserved.pop(server.name).close()
        reserved = self._reserved[server.name] = ports.reserve(server.preferred, hosts=server.hosts)
        server.port = reserved.port
        supervisor.launch(server.make(server.port))

    def _await(self, supervisor: Supervisor, server: _Server) -> float:
        """Until it is ready; on another port when a stranger takes its own under our hands."""
        for attempt in range(_PORT_TRIES):
            try:
                return supervisor.await_ready(server.name)
            except Unavailable:
                taken = not all(ports.is_free(server.port, host=host) for host in server.hosts)
                supervisor.forget(server.name)
                if not taken or attempt == _PORT_TRIES - 1:
                    raise
                self._launch(supervisor, server)
        raise AssertionError

    def _migrate(self) -> None:
        """In a process of its own, whose memory is given back."""
        began = time.monotonic()
        done = subprocess.run(
            [*self._options.program, "db", "upgrade"],
            env={**os.environ, **self.environment},
            cwd=self.data_dir,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        if done.returncode != 0:
            raise Unavailable(
                "schema-not-upgraded",
                f"The database schema could not be brought up to date:\n{done.stderr.strip()[-2000:]}",
                "See it by itself: orchestrator db upgrade",
            )
        said = done.stdout.strip().splitlines()
        self._report.line("schema", said[-1] if said else "up to date", time.monotonic() - began)

    # ---- our processes

    def _start_processes(self, supervisor: Supervisor) -> None:
        """All at once, and then waited for: they spend their start importing."""
        options = self._options
        parts = Processes(self.environment, self.data_dir, options.program)
        host = self._settings.api_host
        api = _Server("api", self._settings.api_port, (host,), lambda port: parts.api(host, port))
        gateway_host = options.listen or self._settings.gateway_host
        gateway = _Server(
            "gateway",
            supervisor.ports.get("gateway", self._settings.gateway_port),
            (gateway_host,),
            lambda port: parts.gateway(gateway_host, port),
        )
        workers = parts.workers(options.workers, options.concurrency)
        flower = _Server(
            "flower",
            supervisor.ports.get("flower", options.flower_port),
            ("127.0.0.1",),
            lambda port: parts.flower(port, credentials.FLOWER_USER, self.credentials.flower_password),
        )
        self._launch(supervisor, gateway)
        told = self.environment["ORCHESTRATOR_GATEWAY_URL"] = self._url(gateway)
        self._launch(supervisor, api)
        for service in (*workers, parts.beat()):
            supervisor.launch(service)
        if options.flower:
            self._launch(supervisor, flower)
        took = self._await(supervisor, api)
        self.api_url = self.environment["ORCHESTRATOR_API_URL"] = f"http://{host}:{api.port}"
        self._report.line("api", self.api_url, took)
        took = self._await(supervisor, gateway)
        self._report.line("gateway", self._url(gateway), took)
        if self._url(gateway) != told:  # a stranger took its port, and the workers were told the old one
            self.environment["ORCHESTRATOR_GATEWAY_URL"] = self._url(gateway)
            supervisor.restart("worker")
        lanes = "critical, high, medium, low, system"
        slowest = max(supervisor.await_ready(worker.name) for worker in workers)
        self._report.line(
            "agents",
            f"{options.workers} workers \N{MULTIPLICATION SIGN} {options.concurrency} ({lanes})",
            slowest,
        )
        every = f"{self._settings.sweep_every.total_seconds():g}s"
        self._report.line("beat", f"stalled-agent sweep every {every}", supervisor.await_ready("beat"))
        took = self._await(supervisor, flower) if options.flower else 0.0
        flower_url = f"http://127.0.0.1:{flower.port}/flower/" if options.flower else None
        where = self._keep_credentials(flower_url)
        if flower_url:
            what = f"{flower_url}  (read-only · {credentials.FLOWER_USER} / in {short(where)})"
            self._report.line("flower", what, took)
        urls = {"api": self.api_url, "gateway": self._url(gateway)}
        supervisor.publish({**urls, **({"flower": flower_url} if flower_url else {})})

    def _url(self, server: _Server) -> str:
        """As it is reached from here."""
        return f"http://{probes.reachable(server.hosts[0])}:{server.port}"

    def _keep_credentials(self, flower_url: str | None) -> Path:
        """Where this user's clients find the key; a passing stack leaves nothing outside its folder."""
        inside = self.data_dir / credentials.FILE
        outside = credentials.client_file()
        if self._options.ephemeral:
            return inside
        told = credentials.tell_clients(
            outside, self.credentials, api_url=self.api_url, flower_url=flower_url
        )
        return outside if told else inside

    def _environment(self, urls: Urls) -> dict[str, str]:
        secret = self._settings.message_secret
        key = self._settings.api_key
        return {
            "ORCHESTRATOR_DATA_DIR": str(self.data_dir),
            "ORCHESTRATOR_DATABASE_URL": urls.database,
            "ORCHESTRATOR_BROKER_URL": urls.broker,
            "ORCHESTRATOR_RESULT_URL": urls.result,
            "ORCHESTRATOR_MESSAGE_SECRET": (
                secret.get_secret_value() if secret else self.credentials.message_secret
            ),
            "ORCHESTRATOR_API_KEY": key.get_secret_value() if key else self.credentials.api_key,
        }

    def _serve_requests(self, supervisor: Supervisor) -> None:
        for request, name, extra in self._requests.take():
            result: tuple[str, ...] | OrchestratorError
            try:
                result = supervisor.restart(name, extra)
                for restarted in result:
                    supervisor.await_ready(restarted)
            except OrchestratorError as error:
                result = error
            self._requests.reply(request, result)


class _Task:
    """Work in a thread that a stop does not wait for."""

    def __init__(self, work: Callable[[], int]) -> None:
        self._outcome: int | BaseException | None = None
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> int:
        if isinstance(self._outcome, int):
            return self._outcome
        raise self._outcome or AssertionError("the work has not ended")

    def _do(self, work: Callable[[], int]) -> None:
        try:
            self._outcome = work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._outcome = error
