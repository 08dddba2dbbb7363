"""`explain` and `version`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

import typer

from orchestrator.cli.terminal import out, print_json
from orchestrator.core.errors import Unknown

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def explain(code: Annotated[str, typer.Argument(help="An error code.")], json: Json = False) -> None:
    """What an error code means and what to do."""
    from orchestrator.api.explanations import EXPLANATIONS

    found = EXPLANATIONS.get(code)
    if found is None:
        near = [known for known in EXPLANATIONS if code[:4] and known.startswith(code[:4])]
        near = near or get_close_matches(code, EXPLANATIONS)
        hint = f"Did you mean: {', '.join(near)}" if near else "Codes stand at the end of an error."
        raise Unknown("code-unknown", f"There is no error code {code!r}.", hint)
    if json:
        print_json({"code": code, "title": found.title, "cause": found.cause, "fix": found.fix})
    else:
        out(f"{found.title}  [{code}]\n  {found.cause}\n  {found.fix}")


def version(json: Json = False) -> None:
    """Which version this is."""
    import platform
    from importlib.metadata import version as installed

    found = {"version": installed("orchestrator"), "python": platform.python_version()}
    if json:
        print_json(found)
    else:
        out(f"orchestrator {found['version']} (Python {found['python']})")
