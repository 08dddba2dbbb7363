"""`orchestrator breakers …`"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import session
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import print_json, say, since, table

app = typer.Typer(no_args_is_help=True)
_TONES = {"closed": "good", "half_open": "attention", "open": "bad"}


@app.command("list")
def list_breakers(json: Json = False) -> None:
    """Providers and types of agent that have failed, and which of them are left alone for now."""
    found = session.client().get("/api/v1/breakers")["data"]
    if json:
        print_json(found)
        return
    table(
        ("name", "state", "kind", "failures", "why", "since"),
        [
            (
                one["name"],
                one["circuit"]["state"],
                one["kind"],
                str(one["circuit"]["failures"]),
                one["reason"] or "",
                since(one["updated_at"]),
            )
            for one in found
        ],
        tones=[_TONES[one["circuit"]["state"]] for one in found],
    )


@app.command()
def reset(
    kind: Annotated[str, typer.Argument(help="provider or agent_type.")],
    name: Annotated[str, typer.Argument(help="Such as anthropic or engine.")],
    json: Json = False,
) -> None:
    """Closes one at once: what waits for it goes on."""
    path = f"/api/v1/breakers/{session.segment(kind)}/{session.segment(name)}/reset"
    answer = session.client().post(path, {})
    if json:
        print_json(answer)
        return
    say(f"{kind} {name} is closed.")
