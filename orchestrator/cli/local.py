"""The verbs of the local stack: up, down, ps, restart, logs, doctor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import session
from orchestrator.cli.terminal import print_json, print_line, say
from orchestrator.core.errors import Refused

if TYPE_CHECKING:
    from orchestrator.config import Settings
    from orchestrator.local.stack import Stack

Data = Annotated[Path | None, typer.Option("--data", help="Data folder; its own installation each.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def settings(data: Path | None, **given: Any) -> Settings:
    """The settings, with what the command line says about them."""
    stated = {name: value for name, value in given.items() if value is not None}
    if data is not None:
        stated["data_dir"] = data.expanduser().resolve()
    return session.settings().model_copy(update=stated)


def up(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="Slots of each worker.")] = 1,
    port: Annotated[int | None, typer.Option(help="Port of the API.")] = None,
    data: Data = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep nothing afterwards.")] = False,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    listen: Annotated[
        str | None, typer.Option(help="Also open Postgres, Redis and the gateway on this address.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    With --json a line for `ready`, with where everything is, and one for `stopped`; the rest is said on
    standard error.
    """
    from orchestrator.local.interrupts import StopAsked
    from orchestrator.local.stack import Options, Stack

    whole_or_nothing(data, ephemeral=ephemeral)
    options = Options(
        workers=workers, concurrency=concurrency, flower=not no_flower, ephemeral=ephemeral, listen=listen
    )
    speak = say if as_json else typer.echo
    began = time.monotonic()
    try:
        with Stack(options, settings(data, api_port=port), say=speak) as stack:
            stack.start()
            if as_json:
                print_line(ready(stack.data_dir, time.monotonic() - began))
            speak(
                f'\n Submit a task    orchestrator task create -d "…" --repo . --watch{_where(data, stack)}'
            )
            after = " and removes it" if ephemeral else "; what is running goes on at the next start"
            speak(f" Ctrl-C stops everything{after}.\n")
            code = stack.run()
    except StopAsked:
        code = 130
    if as_json:
        print_line({"event": "stopped", "exit_code": code})
    raise typer.Exit(code)


def ready(data_dir: Path, seconds: float) -> dict[str, Any]:
    """Where a stack that has just started is."""
    from orchestrator.local import roster

    running = roster.read(data_dir)
    urls = running.urls if running else {}
    return {"event": "ready", "seconds": round(seconds, 3), "data_dir": str(data_dir), "urls": dict(urls)}


def whole_or_nothing(data: Path | None, *, ephemeral: bool) -> None:
    """Raises Refused: a folder that is named is kept, and one that is kept isn't ephemeral."""
    if ephemeral and data is not None:
        raise Refused(
            "option-invalid",
            f"--ephemeral keeps nothing, and --data {data} is a folder to keep.",
            "Leave one of the two out; an ephemeral stack makes a folder of its own and removes it.",
        )


def _where(data: Path | None, stack: Stack) -> str:
    """What a client must know to find this stack."""
    if stack.data_dir == session.settings().data_dir:
        return ""
    return f"   (with ORCHESTRATOR_DATA_DIR={data or stack.data_dir})"


def down(data: Data = None, as_json: AsJson = False) -> None:
    """Stop the stack that runs on this data folder, in order."""
    from orchestrator.local import control

    stopped = control.down(settings(data).data_dir)
    if as_json:
        print_json({"stopped": stopped})
    else:
        typer.echo("stopped" if stopped else "nothing was running")


def ps(
    data: Data = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure memory (PSS), children included.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the local stack's processes."""
    import json
    from dataclasses import asdict

    from orchestrator.local import control

    listed = control.ps(settings(data).data_dir, measure=memory)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in listed]))
        return
    if not listed:
        typer.echo("nothing is running; start it: orchestrator up")
        return
    typer.echo(
        f"{'NAME':<16}{'STATUS':<10}{'PID':>8}{'PORT':>8}{'UP':>10}{'RESTARTS':>10}{'MEMORY':>10}".rstrip()
    )
    for row in listed:
        up_for = f"{time.time() - row.since:.0f}s" if row.since else ""
        pss = f"{row.pss_bytes / 1e6:.0f} MB" if row.pss_bytes is not None else ""
        cells = f"{row.name:<16}{row.status:<10}{row.pid or '':>8}{row.port or '':>8}{up_for:>10}"
        typer.echo(f"{cells}{row.restarts:>10}{pss:>10}".rstrip())
    if memory:
        total = sum(row.pss_bytes or 0 for row in listed)
        typer.echo(f"{'total':<16}{'':<46}{total / 1e6:>7.0f} MB")


def restart(
    service: Annotated[str, typer.Argument(help="A service's name (agent-1) or kind (worker).")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Restart one service, or all of a kind; the gateway takes new providers' keys along."""
    from orchestrator.local import control

    restarted = control.restart(settings(data).data_dir, service, os.environ)
    if as_json:
        print_json({"restarted": restarted})
        return
    for name in restarted:
        typer.echo(f"restarted {name}")


def logs(
    services: Annotated[list[str] | None, typer.Argument(help="Services; all if none is named.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Lines of each at first.")] = 100,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show the processes' own logs (a task's log: orchestrator task logs ID)."""
    from orchestrator.local import control

    for name, line in control.logs(settings(data).data_dir, tuple(services or ()), tail=tail, follow=follow):
        if as_json:
            print_line({"service": name, "line": line})
        else:
            typer.echo(f"{name:<10} {line}")


def doctor(data: Data = None, as_json: AsJson = False) -> None:
    """Say what this machine lacks, and how to mend it. Exit 1 if something must be mended."""
    import json
    from dataclasses import asdict

    from orchestrator.local.doctor import Level, examine

    found = examine(settings(data), os.environ)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        signs = {Level.OK: "✓", Level.WARNING: "!", Level.ERROR: "✗"}
        for finding in found:
            why = f": {finding.why}" if finding.why else ""
            typer.echo(f" {signs[finding.level]} {finding.what}{why}")
            if finding.level is not Level.OK and finding.fix:
                typer.echo(f"     {finding.fix}")
    if any(finding.level is Level.ERROR for finding in found):
        raise typer.Exit(1)
