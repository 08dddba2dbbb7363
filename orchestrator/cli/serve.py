"""The verbs that become one process of an installation: worker, beat, api, gateway, flower; the schema's
upgrade."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from orchestrator.cli import session
from orchestrator.cli.operate import joined
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import print_json
from orchestrator.core.errors import Refused, Unavailable

_APP = ("-A", "orchestrator.tasks")
_QUIET = {"ORCHESTRATOR_WAITS_FOR_RESULTS": "false"}
"""Nobody calls `.get()` in these processes, so nothing is subscribed to for the results of what they send."""


def _become(*words: str, environment: dict[str, str] | None = None) -> NoReturn:
    """Celery's program in place of this one, under the same process id; -P keeps the current folder out."""
    sys.stdout.flush()
    argv = [sys.executable, "-P", "-m", "celery", *words]
    os.execve(sys.executable, argv, {**os.environ, **_QUIET, **(environment or {})})  # noqa: S606 - no shell is wanted


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
    pool: Annotated[str, typer.Option("--pool", help="prefork, threads or solo.")] = "prefork",
    log_level: Annotated[str, typer.Option("--log-level")] = "INFO",
) -> None:
    """Start a worker: each of its slots is an agent that carries out steps.

    Without a database in the environment it joins the stack that runs on this machine.
    """
    from orchestrator import bootstrap
    from orchestrator.queues.settings import WORKER_ENVIRONMENT
    from orchestrator.queues.topology import lanes_of

    _configured()
    consumed = bootstrap.load("worker").topology.consumed(lanes_of(queues))
    _become(
        *(*_APP, "worker", "--loglevel", log_level, "--queues", ",".join(queue.value for queue in consumed)),
        *("--concurrency", str(concurrency), "--pool", pool, "--hostname", f"{name}@%h"),
        *("--without-gossip", "--without-mingle"),
        environment=dict(WORKER_ENVIRONMENT),
    )


def beat(log_level: Annotated[str, typer.Option("--log-level")] = "INFO") -> None:
    """Start beat: it asks for a sweep every few seconds. One is enough, two do no harm."""
    _configured()
    data = session.settings().data_dir
    data.mkdir(parents=True, exist_ok=True)
    schedule = data / "beat-schedule"
    _become(*_APP, "beat", "--loglevel", log_level, "--schedule", str(schedule), "--pidfile=")


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Start the REST API."""
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
    _become(
        *(*_APP, "flower", f"--port={port}", f"--address={address}", "--url_prefix=flower"),
        *("--read_only=True", "--persistent=True", f"--db={data / 'flower'}"),
        *("--state_save_interval=60000", "--max_tasks=10000", "--purge_offline_workers=3600"),
        "--tasks_columns=name,args,state,received,started,runtime,worker,retries,uuid",
    )


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
