"""The program: its tree of verbs, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys

import typer

from orchestrator.cli import demo, local, serve
from orchestrator.core.errors import OrchestratorError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
database = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(database, name="db")

for verb in (local.up, local.down, local.ps, local.restart, local.logs, local.doctor, demo.demo):
    app.command()(verb)
for verb in (serve.worker, serve.beat, serve.api, serve.flower):
    app.command()(verb)
database.command()(serve.upgrade)


def run() -> None:
    """The console script."""
    try:
        app()
    except OrchestratorError as error:
        sys.stderr.write(f"✗ {error.message}\n  {error.hint}\n  code {error.code} · exit 1\n")
        sys.exit(1)
