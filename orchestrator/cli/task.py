"""`orchestrator task …`"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer

from orchestrator.cli import answers, session
from orchestrator.cli.codes import ExitCode, code_of_task
from orchestrator.cli.money import spent
from orchestrator.cli.request import build, by_option
from orchestrator.cli.session import segment
from orchestrator.cli.spans import seconds
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import (
    clean,
    console,
    interactive,
    line,
    out,
    print_json,
    say,
    since,
    span,
    table,
)
from orchestrator.cli.ways_on import ways_on
from orchestrator.core.errors import Conflict, OrchestratorError, Refused, Unavailable, Unknown

app = typer.Typer(no_args_is_help=True)

Heard = tuple[str, dict[str, Any]]
TaskId = Annotated[str, typer.Argument(help="The task's id, with or without task_.")]
Reason = Annotated[str | None, typer.Option("--reason", "-r", help="Why; kept with the command.")]


def _path(task_id: str, *rest: str) -> str:
    return "/".join(("/api/v1/tasks", segment(task_id), *rest))


@app.command()
def create(
    description: Annotated[
        str | None,
        typer.Option("--description", "-d", help="What is to be done: a text, @FILE, or - for stdin."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The whole request as JSON; options come on top.")
    ] = None,
    steps: Annotated[
        Path | None, typer.Option(help="A plan as JSON: a list of steps, or {steps: […]}.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option(help="The repository: a URL, or a path on this machine.")
    ] = None,
    branch: Annotated[str | None, typer.Option(help="What to start from.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the branch with the result at the end.")] = False,
    credential: Annotated[
        str | None, typer.Option(help="The name of the workers' credential for the repository.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="One line; else the description's first.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, medium, low.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, strict, dry-run.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="The kind of agent: see `orchestrator agent types`.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model.")] = None,
    requirements: Annotated[str | None, typer.Option(help="Separated by commas.")] = None,
    deadline: Annotated[str | None, typer.Option(help="A date or a time after which it fails.")] = None,
    stakeholder: Annotated[list[str] | None, typer.Option(help="Who has an interest; repeatable.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; repeatable.")] = None,
    budget: Annotated[str | None, typer.Option(help="At most that many US dollars.")] = None,
    timeout: Annotated[str | None, typer.Option(help="At most that long, such as 2h.")] = None,
    question_timeout: Annotated[
        str | None, typer.Option(help="How long a question may stay unanswered, such as 2h; else for ever.")
    ] = None,
    on_silence: Annotated[
        str | None,
        typer.Option(help="What it means then: fail, default (the agent's own proposal) or wait; else fail."),
    ] = None,
    ask_before: Annotated[
        list[str] | None,
        typer.Option(
            help="Calls to approve: read, write, execute, network, a tool's name, or *; repeatable."
        ),
    ] = None,
    gate: Annotated[list[str] | None, typer.Option(help="A quality gate; not in this version.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(help="A task to wait for; not in this version.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Its project; not in this version.")] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Only say what is wrong; not in this version.")
    ] = False,
    external_id: Annotated[str | None, typer.Option(help="Its id in another system.")] = None,
    task_id: Annotated[
        str | None, typer.Option("--id", help="Its id; the same request twice is one task.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Don't start it before `task resume`.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it ends.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it ends; says only what it waits for.")
    ] = False,
    json: Json = False,
) -> None:
    """Creates a task."""
    given = {
        "description": description,
        "steps": steps,
        "repo": repo,
        "branch": branch,
        "push": push,
        "credential": credential,
        "question_timeout": question_timeout,
        "on_silence": on_silence,
        "ask_before": ask_before,
        "gates": gate,
        "depends_on": depends_on,
        "project": project,
        "validate_only": validate_only,
        "title": title,
        "priority": priority,
        "mode": mode,
        "agent": agent,
        "model": model,
        "requirements": requirements,
        "deadline": deadline,
        "stakeholders": stakeholder,
        "labels": label,
        "budget": budget,
        "timeout": timeout,
        "external_id": external_id,
        "id": task_id,
        "hold": hold,
    }
    client = session.client()
    try:
        task = client.post("/api/v1/tasks", build(file, given))
    except Refused as error:
        raise by_option(error, given) from None
    for warning in task["warnings"]:
        say(f"! {warning['detail']}")
    if watch:
        say(f"{task['id']}  {task['title']}")
        raise typer.Exit(_watched(task["id"], json=json))
    if wait:
        raise typer.Exit(_waited(task["id"], None, "terminal", json=json))
    if json:
        print_json(task)
        return
    out(task["id"])
    say(f"{task['display']['label']} · watch it: orchestrator task watch {task['id']}")


@app.command("list")
def list_tasks(
    status: Annotated[
        str | None,
        typer.Option(help="queued, running, pending_input, completed, failed, cancelled; commas for or."),
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only what needs a person.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed.")] = False,
    newer: Annotated[str | None, typer.Option("--since", help="Not older than, such as 24h.")] = None,
    q: Annotated[
        str | None, typer.Option("-q", "--query", help="Text in title, description or repository.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-L", min=1, help="At most that many.")] = 30,
    json: Json = False,
) -> None:
    """Tasks, newest first."""
    client = session.client()
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < limit:
        page = client.get(
            "/api/v1/tasks",
            status="failed" if failed else status,
            needs_person=waiting or None,
            since=_since(newer),
            q=q,
            limit=min(200, limit - len(found)),
            cursor=cursor,
        )
        found += page["data"]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    if json:
        print_json({"data": found, "has_more": cursor is not None})
        return
    rows = [
        (
            task["id"],
            task["display"]["label"],
            _cut(f"↳ {task['title']}" if task["parent_id"] else task["title"], 50),
            f"{task['steps_done']}/{task['steps_total']}",
            _waits(task),
            since(task["created_at"]),
            spent(task["cost"], is_complete=task["is_cost_complete"], places=2)
            + (" REPLAY" if task["model"]["kind"] == "recorded" else ""),
        )
        for task in found
    ]
    tones = [task["display"]["tone"] for task in found]
    table(("id", "status", "title", "steps", "waiting on", "age", "cost"), rows, tones=tones)
    if not found:
        say('No tasks. Create one: orchestrator task create -d "…" --repo .')


@app.command()
def status(
    task_id: TaskId,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With the history of phases.")] = False,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="The exit code says how it stands, as after `wait`.")
    ] = False,
    json: Json = False,
) -> None:
    """How a task stands, and why."""
    task = session.client().get(_path(task_id))
    if json:
        print_json(task)
    else:
        _print_task(task, verbose=verbose)
    raise typer.Exit(code_of_task(task) if exit_status else ExitCode.OK)


@app.command()
def plan(task_id: TaskId, json: Json = False) -> None:
    """What of a plan can run side by side, and how long that takes by its estimates."""
    found = session.client().get(_path(task_id, "plan"))
    if json:
        print_json(found)
        return
    groups = {key: number for number, keys in enumerate(found["parallel_groups"], start=1) for key in keys}
    table(
        ("step", "group", "estimate", "needs"),
        [
            (
                step["key"],
                str(groups[step["key"]]),
                "" if step["estimate_seconds"] is None else span(step["estimate_seconds"]),
                ", ".join(step["needs"]),
            )
            for step in found["steps"]
        ],
    )
    say(f"Critical path: {' → '.join(found['critical_path'])}")
    if found["parallel_seconds"] is None:
        say("No step has an estimate.")
        return
    longest, together = span(found["sequential_seconds"]), span(found["parallel_seconds"])
    unknown = found["steps_without_estimate"]
    gap = f"; steps without an estimate: {unknown}" if unknown else ""
    say(f"Estimated: {together} side by side, {longest} one after the other{gap}")


@app.command()
def watch(task_id: TaskId, json: Json = False) -> None:
    """Watches a task until it ends. Ctrl-C leaves; the task keeps running."""
    raise typer.Exit(_watched(task_id, json=json))


@app.command()
def wait(
    task_ids: Annotated[list[str], typer.Argument(help="One or several.")],
    timeout: Annotated[
        str | None, typer.Option(help="At most that long for all of them, such as 10m; then exit 3.")
    ] = None,
    until: Annotated[
        str, typer.Option("--for", help="input: also stop when it needs a person; terminal: wait on.")
    ] = "input",
    json: Json = False,
) -> None:
    """Waits until tasks have ended. The exit code is that of the first one that didn't complete."""
    if until not in {"input", "terminal"}:
        raise Refused("option-invalid", f"--for is input or terminal, not {until!r}.", "See --help.")
    deadline = time.monotonic() + seconds(timeout) if timeout else None
    codes = [_waited(task_id, deadline, until, json=json) for task_id in task_ids]
    raise typer.Exit(next((code for code in codes if code), ExitCode.OK))


@app.command()
def logs(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    step: Annotated[str | None, typer.Option(help="Of that step: key or number.")] = None,
    stream: Annotated[str | None, typer.Option(help="agent, stdout, stderr or system.")] = None,
    grep: Annotated[str | None, typer.Option(help="Lines that hold this text.")] = None,
    tail: Annotated[int, typer.Option(min=1, max=1000, help="At most the last so many chunks.")] = 200,
    json: Json = False,
) -> None:
    """What agents and their commands wrote."""
    client = session.client()
    wanted = {"step": step, "stream": stream, "q": grep}
    try:
        page = client.get(_path(task_id, "logs"), tail=tail, **wanted)
        for chunk in page["data"]:
            _print_chunk(chunk, json=json)
        if follow:
            after = page["next_after"]
            for kind, chunk in client.follow(_path(task_id, "logs"), after=after, follow=True, **wanted):
                if kind == "log":
                    _print_chunk(chunk, json=json)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@app.command()
def diff(
    task_id: TaskId,
    stat: Annotated[bool, typer.Option("--stat", help="Only the files and how much.")] = False,
    json: Json = False,
) -> None:
    """What a task changed. In a pipe: the patch, byte for byte."""
    client = session.client()
    if not stat and not json:
        patch = client.text(_path(task_id, "diff"), "text/x-diff")
        if interactive():
            _print_patch(patch.decode("utf-8", "replace"))
        else:
            sys.stdout.buffer.write(patch)
        return
    found = client.get(_path(task_id, "diff"))
    if json:
        print_json(found)
        return
    for file in found["files"]:
        size = "binary" if file["binary"] else f"+{file['additions']} -{file['deletions']}"
        out(f"{file['status'][0].upper()} {line(file['path'])}  {size}")
    say(
        f"{len(found['files'])} files, +{found['additions']} -{found['deletions']},"
        f" on {found['branch'] or 'no branch'}"
    )


@app.command()
def calls(
    task_id: TaskId,
    call: Annotated[str | None, typer.Argument(help="One call: what was said in it, as JSON.")] = None,
    json: Json = False,
) -> None:
    """The calls of live models that a task made, or what was said in one of them."""
    if call is not None:
        print_json(session.client().get(_path(task_id, "calls", call)))
        return
    found = session.client().get(_path(task_id, "calls"))["data"]
    if json:
        print_json(found)
        return
    table(
        ("call", "outcome", "model", "agent", "in", "out", "cost", "since"),
        [
            (
                one["id"],
                one["error_code"] or one["outcome"] or "under way",
                one["model"],
                one["agent_type"],
                f"{one['input_tokens'] + one['cache_read_tokens'] + one['cache_write_tokens']:,}",
                f"{one['output_tokens']:,}",
                spent(one["cost"], is_complete=True) if one["cost"] else _unpriced(one),
                since(one["started_at"]),
            )
            for one in found
        ],
    )


@app.command()
def costs(task_id: TaskId, json: Json = False) -> None:
    """What a task and all that it belongs to have cost, by agent, provider and model."""
    found = session.client().get(_path(task_id, "costs"))
    if json:
        print_json(found)
        return
    table(
        ("model", "provider", "agent", "calls", "in", "out", "cost"),
        [
            (
                one["model"],
                "recorded" if one["recorded"] else one["provider"] or "",
                one["agent_type"] or "",
                str(one["calls"]),
                f"{one['input_tokens'] + one['cache_read_tokens'] + one['cache_write_tokens']:,}",
                f"{one['output_tokens']:,}",
                spent(one["cost"], is_complete=one["recorded"] or not one["unpriced_calls"]),
            )
            for one in found["lines"]
        ]
        + [("", "its own", kind, "", "", "", "price unknown") for kind in found["uncounted_agents"]],
    )
    bound = found["budget"].get("max_cost_usd")
    in_all = spent(found["cost"], is_complete=found["is_cost_complete"])
    say(f"{in_all} in all" + (f" of ${bound}" if bound else ""))
    for kind in found["uncounted_agents"]:
        say(f"{kind} calls models with keys of its own: what that costs is not known here.")
    if any(one["unpriced_calls"] and not one["recorded"] for one in found["lines"]):
        say('Enter what is missing: ORCHESTRATOR_PRICES=\'{"MODEL": {"input": "0.2", "output": "0.6"}}\'')


@app.command()
def answer(
    subject: Annotated[str, typer.Argument(help="The task, or the question (q_…).")],
    choice: Annotated[int | None, typer.Option("--choice", "-c", help="The number of an option.")] = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="The answer itself.")] = None,
    json: Json = False,
) -> None:
    """Answers what an agent asked; the step goes on at once."""
    client = session.client()
    if choice is not None:
        given: dict[str, Any] = {"choice": choice}
    else:
        given = {"text": text} if text is not None else _asked_here(subject)
    question = client.post(f"/api/v1/questions/{segment(subject)}/answer", {"answer": given})
    if json:
        print_json(question)
        return
    say(f"{question['id']} answered: {question['answer']['text']}")
    if question["kind"] == "tool_approval" and question["subject_digest"]:
        say(f"It counts for exactly what was shown: sha256 {question['subject_digest']}")
    say(f"See how it goes on: orchestrator task watch {question['task_id']}")


@app.command()
def message(
    task_id: TaskId,
    text: Annotated[str, typer.Argument(help="What its agent is to hear.")],
    json: Json = False,
) -> None:
    """Tells a task's agent something while it works; it hears that before its next turn."""
    sent = session.client().post(_path(task_id, "messages"), {"text": text})
    if json:
        print_json(sent)
        return
    say(f"{sent['task_id']}: {sent['message']}")
    say(f"  orchestrator task watch {sent['task_id']}")


@app.command()
def pause(task_id: TaskId, reason: Reason = None, json: Json = False) -> None:
    """Starts nothing new; what runs stops at its next turn and is kept."""
    _intervene(task_id, "pause", reason, json=json, then="resume")


@app.command()
def resume(task_id: TaskId, reason: Reason = None, json: Json = False) -> None:
    """Lets a paused task go on, or gives the escalated steps of one that isn't paused another run."""
    _intervene(task_id, "resume", reason, json=json, then="watch")


@app.command()
def cancel(task_id: TaskId, reason: Reason = None, json: Json = False) -> None:
    """Ends a task; what runs hands in what it has."""
    _intervene(task_id, "cancel", reason, json=json, then="status")


@app.command()
def retry(
    task_id: TaskId,
    reason: Reason = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Where to start: `start`; other places not in this version.")
    ] = None,
    json: Json = False,
) -> None:
    """Runs an ended task again, as a new workflow of the same plan."""
    _intervene(task_id, "retry", reason, json=json, then="watch", more={"from": start} if start else {})


# ---- what they share


def _intervene(
    task_id: str,
    command: str,
    reason: str | None,
    *,
    json: bool,
    then: str,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    body = {**({"reason": reason} if reason else {}), **more}
    accepted = session.client().post(_path(task_id, command), body)
    if json:
        print_json(accepted)
        return
    soon = "" if accepted["state"] == "applied" else ", done as soon as what runs takes it up"
    say(f"{accepted['task_id']}: {command} {accepted['state']}{soon}; it is {accepted['status']}.")
    say(f"  {accepted['message']}")
    say(f"  orchestrator task {then} {accepted['task_id']}")


def _watched(task_id: str, *, json: bool) -> ExitCode:
    from orchestrator.cli.watch import Watch, may_ask

    client = session.client()
    found = client.get(_path(task_id))["id"]
    return Watch(client, found, json=json, asks=may_ask()).run()


def _waited(task_id: str, deadline: float | None, until: str, *, json: bool) -> ExitCode:
    """Follows the progress, which a dropped connection doesn't end. `deadline` is of the monotonic clock."""
    client, told = session.client(), ""
    try:
        for kind, data in _before(deadline, client.follow(_path(task_id, "progress"))):
            if kind == "end" or (until == "input" and data["status"] == "pending_input"):
                break
            told = _tell_wait(client.get(_path(task_id)), told)
    except TimeoutError:
        raise _too_long(task_id) from None
    except KeyboardInterrupt:
        say(f"{task_id} keeps running.")
        return ExitCode.INTERRUPTED
    task = client.get(_path(task_id))
    if json:
        print_json(task)
    else:
        out(f"{task['id']}\t{task['status']}")
    return code_of_task(task)


def _tell_wait(task: dict[str, Any], told: str) -> str:
    """What has to be done, if it doesn't go on by itself: said once. What was told last."""
    ways = ways_on(task) if task["waiting_on"] else []
    said = "\n".join([f"{task['id']} waits: {line(task['display']['why'])}", *(f"  → {way}" for way in ways)])
    if ways and said != told:
        say(said)
    return said if ways else ""


def _before(deadline: float | None, source: Iterator[Heard]) -> Iterator[Heard]:
    """What comes of it until then. Raises TimeoutError also while nothing comes at all.

    A thread listens: the server's keep-alives would prolong any time-out of a read.
    """
    if deadline is None:
        yield from source
        return
    heard: queue.SimpleQueue[Heard | OrchestratorError | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for each in source:
                heard.put(each)
        except OrchestratorError as error:
            heard.put(error)
        else:
            heard.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            found = heard.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, OrchestratorError):
            raise found
        if found is None:
            return
        yield found


def _too_long(task_id: str) -> OrchestratorError:
    return Unavailable(
        "wait-timed-out",
        f"{task_id} has not ended yet; it keeps running.",
        f"orchestrator task watch {task_id}",
    )


def _since(text: str | None) -> str | None:
    return (datetime.now(UTC) - timedelta(seconds=seconds(text))).isoformat() if text else None


def _unpriced(call: dict[str, Any]) -> str:
    return "price unknown" if call["input_tokens"] + call["output_tokens"] else ""


def _waits(task: dict[str, Any]) -> str:
    if not task["waiting_on"]:
        return ""
    missing = (task["waiting_detail"] or {}).get("missing") or {}
    lacks = "; ".join(f"{name} {gaps[0].split(':')[0]}" for name, gaps in missing.items() if gaps)
    said = task["waiting_on"].replace("_", " ") + (f" ({_cut(lacks, 60)})" if lacks else "")
    return f"{said} · {since(task['waiting_since'])}"


def _cut(text: str, most: int) -> str:
    text = line(text)
    return text if len(text) <= most or not interactive() else f"{text[: most - 1]}…"


def _print_task(task: dict[str, Any], *, verbose: bool) -> None:
    replay = "  REPLAY (recorded model)" if task["model"]["kind"] == "recorded" else ""
    out(f"{task['id']}  {line(task['title'])}{replay}")
    waits = task["waiting_on"] and task["status"] == task["display"]["label"]
    said = f" (waits for {_AWAITED.get(task['waiting_on'], task['waiting_on'])})" if waits else ""
    out(f"  {task['display']['label']}{said}: {line(task['display']['why'])}")
    out(
        f"  {task['priority']} · {task['execution_mode']} · phase {task['phase']}"
        f" · created {since(task['created_at'])} ago by {line(task['created_by'])}"
        f" · {spent(task['usage']['cost'], is_complete=task['usage']['is_cost_complete'])}"
    )
    if task["parent_id"]:
        out(f"  started by an agent of {task['parent_id']}")
    if task["repository_url"]:
        out(f"  {line(task['repository_url'])}" + (f" → {task['branch']}" if task["branch"] else ""))
    for step in task["steps"]:
        said = step["error"]["message"] if step["error"] else step["summary"] or ""
        said = step["display"]["why"] if step["waiting_on"] else said
        said = "" if step["waiting_on"] and said == task["display"]["why"] else said  # told above
        attempt = f" (attempt {step['attempt']})" if step["attempt"] > 1 else ""
        out(
            f"  {step['number']:>3} {step['display']['label']:<14} {line(step['key'])}{attempt}"
            f"  {line(said)}".rstrip()
        )
    for question in task["questions"]:
        first, *more = answers.lines(question)
        out(f"  ? {question['id']}: {line(first.removeprefix('? '))}")
        for each in more:
            out(f"      {line(each)}")
    for child in task["children"]:
        indent = "  " * (child["depth"] - task["depth"])
        out(f"{indent}↳ {child['display']['label']:<14} {child['id']}  {line(child['title'])}".rstrip())
    for way in ways_on(task):
        out(f"  → {way}")
    if verbose:
        out(f"  {task['description']}")
        for change in task["workflow"]["history"]:
            out(f"  {change['timestamp'][:19]}Z {change['from_state'] or '·'} → {change['to_state']}")


_AWAITED: Final = {"agent": "an agent", "circuit_breaker": "what failed to recover", "slot": "a slot"}


def _print_chunk(chunk: dict[str, Any], *, json: bool) -> None:
    if json:
        import json as encoder

        print(encoder.dumps(chunk), flush=True)
        return
    where = f"{chunk['step_key']}: " if chunk["step_key"] else ""
    for each in chunk["text"].splitlines():
        out(f"{where}{each}")


def _print_patch(patch: str) -> None:
    from rich.text import Text

    screen = console()
    for each in patch.splitlines():
        style = ""
        if each.startswith(("+++", "---", "diff ", "index ")):
            style = "bold"
        elif each.startswith("+"):
            style = "green"
        elif each.startswith("-"):
            style = "red"
        elif each.startswith("@@"):
            style = "cyan"
        screen.print(Text(clean(each), style=style), soft_wrap=True)


def _asked_here(subject: str) -> dict[str, Any]:
    """The answer from the keyboard; refused when nobody sits there."""
    if not sys.stdin.isatty():
        raise Refused(
            "answer-missing",
            "There is no answer.",
            f"orchestrator task answer {subject} --choice 1   or --text '…'",
        )
    client = session.client()
    questions = (
        [client.get(f"/api/v1/questions/{segment(subject)}")]
        if subject.startswith("q_")
        else client.get(_path(subject))["questions"]
    )
    for question in questions:
        for each in answers.lines(question):
            say(each)
    if not questions:
        raise Unknown(
            "question-unknown", f"Task {subject} has no open question.", f"orchestrator task status {subject}"
        )
    if len(questions) > 1:
        ways = "\n".join(f"orchestrator task answer {question['id']}" for question in questions)
        raise Conflict("question-ambiguous", f"Task {subject} has {len(questions)} open questions.", ways)
    try:
        said = str(typer.prompt(f"answer [{answers.prompt(questions[0])}]"))
    except typer.Abort:
        say("")  # the prompt's line is left open
        raise
    return answers.given(questions[0], said)
