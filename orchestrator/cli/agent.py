"""`orchestrator agent …`"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestrator.agents.programs import Pin
from orchestrator.cli import session
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import interactive, out, print_json, say, since, table

app = typer.Typer(no_args_is_help=True)
_TONES = {"busy": "active", "idle": "good", "draining": "attention"}


@app.command("list")
def list_agents(
    gone: Annotated[bool, typer.Option("--all", help="Those that ended, too.")] = False, json: Json = False
) -> None:
    """Who is there and what they do."""
    _show(session.client().get("/api/v1/agents", gone=gone)["data"], json)


@app.command()
def stalled(json: Json = False) -> None:
    """Who is alive but doesn't move, or gives no sign of life; with the evidence."""
    found = session.client().get("/api/v1/agents/stalled")["data"]
    _show(found, json)
    if found and not json:
        say(
            "Take the step away from one: orchestrator agent reclaim ID\n"
            "(the sweep does it by itself once the lease has ended)"
        )


@app.command()
def reclaim(
    agent: Annotated[
        str | None, typer.Argument(help="An agent or worker; without: all overdue ones.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which steps.")] = False,
    json: Json = False,
) -> None:
    """Takes steps away from agents that are stuck; another attempt goes on from the last finished turn."""
    body: dict[str, Any] = {"dry_run": dry_run} | ({"agent": agent} if agent else {})
    answer = session.client().post("/api/v1/agents/reclaim", body)
    if json:
        print_json(answer)
        return
    table(
        ("task", "step", "agent", "attempt"),
        [
            (one["task_id"], one["step_id"], one["agent_id"] or "", str(one["attempt"]))
            for one in answer["data"]
        ],
    )
    verb = "would be" if dry_run else "were"
    say(f"{len(answer['data'])} steps {verb} reclaimed.")


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="An agent or a worker, as `agent list` shows it.")],
    off: Annotated[bool, typer.Option("--off", help="Let it take work again.")] = False,
    json: Json = False,
) -> None:
    """Lets an agent finish its turn, give back what it has, and take nothing new."""
    answer = session.client().post(
        f"/api/v1/agents/{session.segment(name).replace('%2F', '/')}/drain", {"on": not off}
    )
    if json:
        print_json(answer)
    else:
        say(f"{', '.join(answer['agents'])}: {'takes work again' if off else 'draining'}.")
        say("See it: orchestrator agent list")


@app.command()
def types(json: Json = False) -> None:
    """Which kinds of agent this machine can run, what each is good at, and what is missing for the others."""
    from orchestrator import bootstrap
    from orchestrator.agents.readiness import shown

    found = [shown(one) for one in bootstrap.load("orchestrator:agent-types").agents.values()]
    if json:
        print_json({"data": found})
        return
    rows = [
        (
            one["name"],
            "usable" if one["usable"] else "missing",
            one["version"] or "",
            one["grade"],
            one["protocol"],
            one["strengths"],
        )
        for one in found
    ]
    tones = ["good" if one["usable"] else "attention" for one in found]
    table(("agent", "here", "version", "class", "by", "good at"), rows, tones=tones)
    for one in found:
        for gap in one["missing"]:
            say(f"{one['name']}: {gap['what']}. {gap['do']}")


@app.command()
def install(
    names: Annotated[list[str] | None, typer.Argument(help="Which ones; without: all.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="The same, as an option.")] = None,
    what: Annotated[bool, typer.Option("--list", help="Only say which there are.")] = False,
    json: Json = False,
) -> None:
    """Installs the agents' programs from the package registries, in the tried versions, for all checkouts.

    They go to $ORCHESTRATOR_AGENTS_DIR, else to ~/.cache/orchestrator/agents. Nothing is done twice.
    """
    from orchestrator.local import agent_programs

    if not what:
        quiet = (lambda _: None) if json else say
        agent_programs.install((*(names or ()), *(only or ())), quiet)
    found = agent_programs.listed()
    if json:
        print_json({"data": [_program(one.pin, one.state) for one in found]})
    elif what:
        rows = [(one.pin.name, one.pin.version, one.state, f"{one.pin.size_mb} MB") for one in found]
        table(("program", "version", "state", "on disk"), rows)


@app.command()
def conformance(
    name: Annotated[str, typer.Argument(help="A kind of agent, or module:function that makes an adapter.")],
    model: Annotated[str | None, typer.Option(help="The model's name that it is given.")] = None,
    json: Json = False,
) -> None:
    """Runs an agent's real program through what each must show, against a model that plays a script."""
    from orchestrator.cli import conformance as suite

    tones = {"passed": "good", "failed": "bad", "skipped": "attention"}

    def tell(one: suite.Outcome) -> None:
        if not json:
            row = (one.scenario, one.state, f"{one.seconds:.1f}s", one.detail)
            table(("", "", "", ""), [row], tones=[tones[one.state]]) if interactive() else out("\t".join(row))

    found = suite.run(name, model, tell)
    if json:
        print_json({"data": [asdict(one) for one in found]})
    failed = sum(one.state == "failed" for one in found)
    if failed:
        say(f"{failed} of {len(found)} failed.")
        raise typer.Exit(1)


def _program(pin: Pin, state: str) -> dict[str, Any]:
    return {"name": pin.name, "version": pin.version, "state": state, "size_mb": pin.size_mb}


def _show(found: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json({"data": found})
        return
    rows = [
        (
            one["id"],
            "stalled" if one["stalled"] else one["status"],
            f"{one['task_id']} · {one['step_key']}" if one["task_id"] else "",
            since(one["heartbeat_at"]),
            since(one["progress_at"]),
            one["stalled_why"] or ",".join(name.rpartition(".")[2] for name in one["queues"]),
        )
        for one in found
    ]
    tones = ["bad" if one["stalled"] else _TONES.get(one["status"], "neutral") for one in found]
    table(("agent", "status", "works on", "heartbeat", "progress", "queues"), rows, tones=tones)
    if not found:
        say("No agents.")
