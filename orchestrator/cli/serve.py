"""The verbs that become one process of an installation: worker, beat, api, gateway, flower; the schema's
upgrade."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated, Final

import typer

from orchestrator.cli import session
from orchestrator.cli.loading import loading
from orchestrator.cli.operate import joined
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import print_json
from orchestrator.core.errors import Refused, Unavailable

_QUIET: Final = {"ORCHESTRATOR_WAITS_FOR_RESULTS": "false"}
"""Nobody calls `.get()` in these processes, so nothing is subscribed to for the results of what they send."""


class Pool(StrEnum):
    PREFORK = "prefork"
    THREADS = "threads"
    SOLO = "solo"


class Level(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


LogLevel = Annotated[Level, typer.Option("--log-level", case_sensitive=False)]


def _quietly(**more: str) -> None:
    """Before Celery is imported, which reads some of it then."""
    os.environ.update(_QUIET, **more)


def _configured() -> None:
    """Takes the settings of the stack that runs here, if none are given. Raises Unavailable."""
    joined()
    if session.settings().database_url is None:
        raise Unavailable(
            "database-not-configured",
            "No database is configured, and no stack runs here.",
            "Start everything here: orchestrator up   Or set ORCHESTRATOR_DATABASE_URL.",
        )


def worker(
    queues: Annotated[
        str, typer.Option("--queues", "-Q", help="Lanes to serve: critical,high,medium,low,system.")
    ] = "critical,high,medium,low",
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Slots, each an agent.")] = 1,
    name: Annotated[str, typer.Option("--name", "-n", help="Unique on this machine.")] = "agent",
    pool: Annotated[Pool, typer.Option("--pool")] = Pool.PREFORK,
    log_level: LogLevel = Level.INFO,
) -> None:
    """Start a worker: each of its slots is an agent that carries out steps.

    Without a database in the environment it joins the stack that runs on this machine.
    """
    with loading():
        from orchestrator import bootstrap
        from orchestrator.queues.settings import WORKER_ENVIRONMENT
        from orchestrator.queues.topology import lanes_of

        _configured()
        _quietly(**WORKER_ENVIRONMENT)
        consumed = bootstrap.load("worker").topology.consumed(lanes_of(queues))
        from orchestrator.tasks import app
        from orchestrator.tasks.programs import run_worker

    queue_names = [queue.value for queue in consumed]
    how = {"pool": pool.value, "log_level": log_level.value}
    raise typer.Exit(run_worker(app, f"{name}@%h", queue_names, slots=concurrency, **how))


def beat(log_level: LogLevel = Level.INFO) -> None:
    """Start beat: it asks for a sweep every few seconds. One is enough, two do no harm."""
    _configured()
    _quietly()
    data = session.settings().data_dir
    data.mkdir(parents=True, exist_ok=True)
    with loading():
        from orchestrator.tasks import app
        from orchestrator.tasks.programs import run_beat

    run_beat(app, data / "beat-schedule", log_level=log_level.value)


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Start the REST API."""
    with loading():
        import uvicorn

        from orchestrator import bootstrap
        from orchestrator.api.app import create_api
        from orchestrator.tasks import logs

    _configured()
    settings = session.settings()
    given = {"api_host": host, "api_port": port, "waits_for_results": False}
    settings = settings.model_copy(update={key: value for key, value in given.items() if value is not None})
    wiring = bootstrap.load("api", settings)
    logs.configure(wiring.redactor)
    uvicorn.run(
        create_api(wiring),
        host=settings.api_host,
        port=settings.api_port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )


def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Start the gateway: it alone holds the providers' keys, and all live models are called through it.

    It takes ANTHROPIC_API_KEY and OPENAI_API_KEY (and …_BASE_URL) from its environment.
    """
    with loading():
        import uvicorn

        from orchestrator import bootstrap
        from orchestrator.gateway.app import create_gateway

    _configured()
    settings = session.settings()
    given = {"gateway_host": host, "gateway_port": port, "waits_for_results": False}
    settings = settings.model_copy(update={key: value for key, value in given.items() if value is not None})
    wiring = bootstrap.load("gateway", settings)
    bootstrap.redact_logs(wiring.redactor)
    uvicorn.run(
        create_gateway(wiring),
        host=settings.gateway_host,
        port=settings.gateway_port,
        http="h11",
        ws="none",
        log_level="critical",  # a reply that a provider broke off is cut, which uvicorn would call our error
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def flower(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5555,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start Flower, read-only and behind a password (FLOWER_BASIC_AUTH=user:password)."""
    if not os.environ.get("FLOWER_BASIC_AUTH"):
        raise Refused(
            "flower-password-missing",
            "Flower shows every task and worker, and no password is set for it.",
            "Set FLOWER_BASIC_AUTH=user:password.",
        )
    data = session.settings().data_dir
    data.mkdir(parents=True, exist_ok=True)
    _quietly()
    # In place of this process, under the same id; -P keeps the current folder out.
    argv = [
        *(sys.executable, "-P", "-m", "celery", "-A", "orchestrator.tasks"),
        *("flower", f"--port={port}", f"--address={address}", "--url_prefix=flower"),
        *("--read_only=True", "--persistent=True", f"--db={data / 'flower'}"),
        *("--state_save_interval=60000", "--max_tasks=10000", "--purge_offline_workers=3600"),
        "--tasks_columns=name,args,state,received,started,runtime,worker,retries,uuid",
    ]
    sys.stdout.flush()
    os.execv(sys.executable, argv)  # noqa: S606 - no shell is wanted


def upgrade(json: Json = False) -> None:
    """Bring the database's schema up to date."""
    from orchestrator import bootstrap
    from orchestrator.db.upgrade import upgrade as migrate

    _configured()
    applied = migrate(bootstrap.load("upgrade").engine)
    if json:
        print_json({"migrations": applied})
        return
    typer.echo(f"{applied} migration{'' if applied == 1 else 's'} applied" if applied else "up to date")
