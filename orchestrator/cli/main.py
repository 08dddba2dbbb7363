"""The entry point: `orchestrator …`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import agent, breakers, demo, local, model_server, operate, serve, session, system, task
from orchestrator.cli.codes import ExitCode, report
from orchestrator.core.errors import OrchestratorError

app = typer.Typer(
    name="orchestrator",
    help="Runs coding agents on your repositories, on Celery, with Postgres as the truth.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First run: orchestrator demo   Then: orchestrator up, and in another terminal: "
    'orchestrator task create -d "…" --repo . --watch',
)
app.add_typer(task.app, name="task", help="Create tasks, look at them, answer and command them.")
app.add_typer(agent.app, name="agent", help="The agents: who works, who is stuck.")
app.add_typer(breakers.app, name="breakers", help="Providers and agents that are left alone for now.")
database = typer.Typer(
    no_args_is_help=True, help="The database: its schema, backups, and what is kept for how long."
)
_DATABASE: tuple[Callable[..., None], ...] = (
    serve.upgrade,
    operate.backup,
    operate.restore,
    operate.retention,
)
for command in _DATABASE:
    database.command()(command)
app.add_typer(database, name="db")
app.add_typer(operate.queue, name="queue", help="The broker's queues.")
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(local.up, local.down, local.ps, local.restart, local.logs, demo.demo, local.doctor),
    *(serve.worker, serve.beat, serve.api, serve.gateway, serve.flower, model_server.model_server),
    *(system.explain, system.version),
)
for command in _COMMANDS:
    app.command()(command)


@app.callback()
def options(
    api_url: Annotated[
        str | None, typer.Option(help="Where the API is.", envvar="ORCHESTRATOR_API_URL")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the API key (or ORCHESTRATOR_API_KEY).")
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (or NO_COLOR).")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    session.current.api_url = api_url
    session.current.api_key_file = api_key_file
    session.current.debug = debug
    if no_color:
        os.environ["NO_COLOR"] = "1"


def main(arguments: list[str]) -> int:
    """Runs one command; its exit code."""
    try:
        result = app(args=arguments, prog_name="orchestrator", standalone_mode=False)
    except OrchestratorError as error:
        if session.current.debug:
            raise
        return report(error)
    except (typer.Abort, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
        return ExitCode.INTERRUPTED if interrupted else ExitCode.DECLINED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()  # a usage error, which the command line's library words by itself
        return int(code)
    return int(result) if isinstance(result, int) else ExitCode.OK


def run() -> None:
    sys.exit(main(sys.argv[1:]))
