"""`orchestrator demo`: a recorded model, and everything else real: tools, git, tests, workers, state.

Shows one task live from its submission to the branch that it leaves, then says what to try next.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli.local import AsJson, Data, ready, settings, whole_or_nothing
from orchestrator.cli.terminal import out, print_line, say
from orchestrator.cli.unechoed import unechoed

if TYPE_CHECKING:
    from orchestrator.cli.client import Client

_PACKAGE: Final = Path(__file__).parent.parent
_DATA: Final = _PACKAGE / "data"
_GIT: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_NAME": "Sample" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "sample@localhost" for who in ("AUTHOR", "COMMITTER")},
}


def demo(
    data: Data = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep nothing afterwards.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure the processes' memory at the end.")
    ] = False,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start everything, run a recorded task on a bundled repository, show it live, stop everything.

    A stack that runs already is used, and goes on running. With --json a line for `ready`, for each event,
    and for the `task` as it ended.
    """
    from orchestrator.cli.client import Client
    from orchestrator.local.interrupts import StopAsked
    from orchestrator.local.stack import Options, Stack

    whole_or_nothing(data, ephemeral=ephemeral)
    found = settings(data)
    speak = say if as_json else typer.echo
    show = _print_events if as_json else _show
    if not ephemeral and (running := _running(found.data_dir, speak)) is not None:
        with unechoed():
            code = show(running, found.data_dir, memory)
        raise typer.Exit(code)
    options = Options(ephemeral=ephemeral, flower=not no_flower)
    try:
        with unechoed(), Stack(options, found, say=speak) as stack:
            began = time.monotonic()
            stack.start()
            took = time.monotonic() - began
            speak(f"\n ready in {took:.1f} s\n")
            if as_json:
                print_line(ready(stack.data_dir, took))
            client = Client(stack.api_url, stack.environment["ORCHESTRATOR_API_KEY"])
            code = stack.run(lambda: show(client, stack.data_dir, memory))
    except StopAsked:
        code = 130
    raise typer.Exit(code)


def _running(data_dir: Path, speak: Callable[[str], None]) -> Client | None:
    """The API of the stack that runs on this folder, if one does."""
    from orchestrator.cli.client import Client
    from orchestrator.local.joining import environment

    found = environment(data_dir)
    if "ORCHESTRATOR_API_URL" not in found:
        return None
    speak(f" Using the stack that runs: {found['ORCHESTRATOR_API_URL']}\n")
    return Client(found["ORCHESTRATOR_API_URL"], found["ORCHESTRATOR_API_KEY"])


def _submitted(client: Client, data_dir: Path) -> tuple[dict[str, Any], Path]:
    """The demonstration's task, and the repository that it works on."""
    plan = json.loads((_DATA / "recordings/fix-bug/plan.json").read_text("utf-8"))
    repository = _sample(plan["sample"], data_dir / "demo")
    body = {
        "description": plan["description"],
        "title": "Fix failing tests in textstats",
        "repository": {"path": str(repository)},
        "agent": {"type": "replay"},
        "steps": plan["steps"],
    }
    return client.post("/api/v1/tasks", body), repository


def _print_events(client: Client, data_dir: Path, memory: bool) -> int:
    task, _ = _submitted(client, data_dir)
    for kind, event in client.follow(f"/api/v1/tasks/{task['id']}/events"):
        print_line({"event": kind, **event})
    ended = client.get(f"/api/v1/tasks/{task['id']}")
    print_line({"event": "task", "task": ended})
    if memory:
        from orchestrator.local import control

        measured = {row.name: row.pss_bytes for row in control.ps(data_dir, measure=True)}
        print_line({"event": "memory", "pss_bytes": measured})
    return 0 if ended["status"] == "completed" else 10


def _show(client: Client, data_dir: Path, memory: bool) -> int:
    task, repository = _submitted(client, data_dir)
    typer.echo(' Demo "fix-bug" · REPLAY: a recorded model conversation; no model is called, cost $0.00.')
    typer.echo(f" Tools, tests, git and state are real. Repository: {repository}\n")
    typer.echo(f" {task['id']}  {task['title']}  (REPLAY)")
    for line in _live(client, task["id"], task["steps_total"]):
        out(f" {line}")
    ended = client.get(f"/api/v1/tasks/{task['id']}")
    _tell(client, ended)
    if memory:
        _memory(data_dir)
    _next(task["id"])
    return 0 if ended["status"] == "completed" else 10


def _sample(name: str, folder: Path) -> Path:
    """A git repository of the bundled sample; the same commit on every machine."""
    target = folder / name
    if target.exists():
        shutil.rmtree(target)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_DATA / "samples" / name, target, ignore=ignored)
    fixed = {f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")}
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("commit", "-q", "-m", "The sample as it came"),
    ):
        subprocess.run(("git", "-C", str(target), *words), check=True, env={**_GIT, **fixed, **_path()})
    return target


def _path() -> dict[str, str]:
    import os

    return {"PATH": os.environ.get("PATH", os.defpath)}


def _live(client: Client, task_id: str, total: int) -> Iterator[str]:
    for kind, event in client.follow(f"/api/v1/tasks/{task_id}/events"):
        said = _said(event, total) if kind != "end" else None
        if said:
            yield f"{_clock(event['at'])} {said}"


def _clock(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone():%H:%M:%S}"


def _said(event: Mapping[str, Any], total: int) -> str | None:
    """One line for people about what matters of an event; None for the rest."""
    data = event["data"]
    where = f"step {event['step_number']}/{total}" if event["step_number"] else ""
    match event["type"], event["name"]:
        case "status", name:
            came = data.get("from")
            return f"{came} → {name}" if came else f"submitted as {name}"
        case "step", "claim":
            return f"{where} ▶ {event['step_key']} on {data['agent']} (workspace, attempt {data['attempt']})"
        case "step", "succeed":
            commit = f" · commit {data['commit'][:10]}" if data.get("commit") else ""
            return f"{where} ✓ {event['step_key']}{commit}: {_first(data.get('summary') or '')}"
        case "step", name if name in {"fail", "retry", "expire", "cancel"}:
            return (
                f"{where} ✗ {event['step_key']} {name}: {json.dumps(data.get('error') or data.get('reason'))}"
            )
        case "progress", "turn":
            return f"{where}     turn {data['number']} (replayed)"
        case "progress", "tool" if data.get("state") == "finished":
            how = "returned an error" if data.get("is_error") else "ok"
            return f"{where}     {data['name']} {how} (really run)"
        case "progress", "tool" if data.get("state") == "started":
            return _call(where, data)
    return None


def _call(where: str, data: Mapping[str, Any]) -> str | None:
    arguments = data.get("arguments") or {}
    match data["name"]:
        case "run_command":
            return f"{where}     $ {_first(str(arguments.get('command', '')))}"
        case "edit_file" | "write_file" | "read_file":
            return f"{where}     {data['name']} {arguments.get('path', '')}"
    return None


def _first(text: str, most: int = 90) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _tell(client: Client, task: Mapping[str, Any]) -> None:
    took = _seconds(task)
    typer.echo(
        f" {'✓' if task['status'] == 'completed' else '✗'} {task['status']} in {took:.1f} s · $0.00 (REPLAY)"
    )
    if task["status"] != "completed":
        typer.echo(f"   {json.dumps(task['outcome'])}")
        return
    typer.echo(f"\n Branch {task['result']['branch']} at {task['result']['commit'][:12]}\n")
    out(client.text(f"/api/v1/tasks/{task['id']}/diff", "text/x-diff").decode("utf-8", "replace").rstrip())
    typer.echo("\n History")
    for change in task["workflow"]["history"]:
        typer.echo(f"   {_clock(change['timestamp'])} {change['from_state'] or '·'} → {change['to_state']}")


def _seconds(task: Mapping[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(task[name]) for name in ("created_at", "finished_at"))
    return (ended - began).total_seconds()


def _memory(data_dir: Path) -> None:
    from orchestrator.local import control

    typer.echo("\n Memory (PSS, children included)")
    listed = control.ps(data_dir, measure=True)
    for row in listed:
        typer.echo(f"   {row.name:<14} {(row.pss_bytes or 0) / 1e6:7.1f} MB")
    typer.echo(f"   {'total':<14} {sum(row.pss_bytes or 0 for row in listed) / 1e6:7.1f} MB")


def _next(task_id: str) -> None:
    lines: tuple[tuple[str, str], ...] = (
        ("Keep it running", "orchestrator up"),
        ("See the change again", f"orchestrator task diff {task_id}"),
        ("Your own task", 'orchestrator task create -d "…" --repo . --watch    (with ANTHROPIC_API_KEY)'),
        ("From Python", "from orchestrator.tasks import execute_task; execute_task.delay(…)"),
    )
    typer.echo("\n What to try next")
    for what, command in lines:
        typer.echo(f"   {what:<22} {command}")
    typer.echo("")
