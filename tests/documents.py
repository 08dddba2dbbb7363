"""The reference pages that are made from the code: `python -m tests.documents` writes them anew."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer.main
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from sqlalchemy import Table

from orchestrator import config
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.api.app import create_api
from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.bootstrap import load
from orchestrator.cli.main import app as cli
from orchestrator.commands.request import TaskRequest
from orchestrator.config import Settings
from orchestrator.core.data_dir import usual
from orchestrator.core.diagram import mermaid
from orchestrator.core.leave import RISKS
from orchestrator.core.recovery import BACKOFF
from orchestrator.core.states import (
    PHASES,
    RULES,
    WAITS_FOR_MACHINE,
    WAITS_FOR_PERSON,
    WAITS_QUEUED,
)
from orchestrator.db.models import Base
from orchestrator.queries.display import display

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
MADE = "<!-- Made from the code by `python -m tests.documents`; a test compares. -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    titles = list(head)
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def page(title: str, intro: str, body: Iterable[str], following: Mapping[str, str]) -> str:
    links = " · ".join(f"[{name}]({target})" for name, target in following.items())
    return "\n".join([f"# {title}", "", MADE, "", intro, "", *body, "", f"Next: {links}", ""])


# ---- settings


def settings() -> str:
    meanings = _attribute_docstrings(config, "Settings")
    rows = (
        (
            "<br>".join(f"`{name}`" for name in _environment_names(field, info)),
            _default(usual({}) if info.default_factory else info.default),
            " ".join(meanings.get(field, "").split()),
        )
        for field, info in Settings.model_fields.items()
    )
    return page(
        "Settings",
        "All are environment variables, read once when a process starts. Where a setting has several names "
        "the first one that is set counts. Durations are seconds or ISO 8601 (`PT5M`); lists are JSON. "
        "`orchestrator up` sets where Postgres, Redis and the API are, and the secrets, by itself.",
        table(("Variable", "Default", "Meaning"), rows),
        {"Scale workers": "../how-to/scale-workers.md", "External servers": "../how-to/external-servers.md"},
    )


def _environment_names(field: str, info: FieldInfo) -> list[str]:
    if isinstance(info.validation_alias, AliasChoices):
        return [str(choice) for choice in info.validation_alias.choices]
    return [f"ORCHESTRATOR_{field.upper()}"]


def _default(value: Any) -> str:
    match value:
        case None | "" | []:
            return ""
        case timedelta():
            return f"{value.total_seconds():g} s"
        case bool():
            return str(value).lower()
        case _:
            return f"`{value}`"


def _attribute_docstrings(module: Any, name: str) -> dict[str, str]:
    """The texts below the fields of a class."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


# ---- states


def states() -> str:
    body = [
        "```mermaid",
        mermaid(),
        "```",
        "",
        (
            "A task is `queued` until a worker first claims one of its steps, `pending_input` while a step "
            "waits for a person and none runs or could run, and ends when all of its steps have ended. "
            "`retry` begins a new workflow of an ended task."
        ),
        "",
        "## Events",
        "",
        *table(
            ("Event", "From", "To", "Meaning"),
            (
                (f"`{event}`", ", ".join(sorted(rule.sources)), rule.to, rule.meaning)
                for event, rule in RULES.items()
            ),
        ),
        "",
        "## What a live task waits for",
        "",
        "`waiting_on` says it; some values belong to features that this version doesn't have yet.",
        "",
        *table(
            ("Value", "Status", "Shown as", "Meaning"),
            (
                (f"`{value}`", status, shown.label, shown.why)
                for status, values in (
                    ("pending_input", WAITS_FOR_PERSON),
                    ("running", WAITS_FOR_MACHINE),
                    ("queued", WAITS_QUEUED),
                )
                for value in sorted(values)
                for shown in (display(status, value, None),)
            ),
        ),
        "",
        "## Phases of a workflow",
        "",
        *table(
            ("Phase", "Leads to"),
            (
                (f"`{phase}`", ", ".join(sorted(to)) or "nothing: it is terminal")
                for phase, to in PHASES.items()
            ),
        ),
    ]
    return page(
        "States",
        "The six statuses of tasks and steps, the events that lead from one to another, and the phases of a "
        "workflow.",
        body,
        {"How a step runs": "../explanation/execution-protocol.md", "Debug a stuck task": _STUCK},
    )


_STUCK = "../how-to/debug-a-stuck-task.md"


# ---- errors


def errors() -> str:
    body = [
        *table(
            ("Code", "What happened", "Why", "What to do"),
            (
                (
                    f"`{code}`",
                    found.title,
                    found.cause,
                    f"`{found.fix}`" if found.fix.startswith("orc") else found.fix,
                )
                for code, found in sorted(EXPLANATIONS.items())
            ),
        ),
        "",
        "## When a step is tried again",
        "",
        (
            "A step that breaks is tried again by the class of its error, and never more often than "
            "`ORCHESTRATOR_MAX_ATTEMPTS` allows; a provider's own `Retry-After` counts when it is longer."
        ),
        "",
        *table(
            ("Class", "Attempts", "First pause", "Longest pause"),
            (
                (
                    error,
                    str(rule.tries),
                    *(("", "") if rule.tries == 1 else (f"{_s(rule.first)}", f"{_s(rule.cap)}")),
                )
                for error, rule in BACKOFF.items()
            ),
        ),
    ]
    return page(
        "Error codes",
        "Every error has a code, the same in the API, on the command line and in what `.get()` raises. "
        "The API answers errors as `application/problem+json`; `orchestrator explain <code>` and "
        "`GET /problems/<code>` say what is said here.",
        body,
        {"Exit codes": "exit-codes.md", "Debug a stuck task": _STUCK},
    )


def _s(value: timedelta) -> str:
    return f"{value.total_seconds():g} s"


# ---- database


def database() -> str:
    return page(
        "Database",
        "The tables of the schema. The rows are the truth about every task; read them as you like, write "
        "them never: a trigger refuses what would change an ended row, but not every mistake. Every key "
        "begins with `tenant_id`, which is `default` in this version.",
        (line for found in Base.metadata.sorted_tables for line in _table(found)),
        {"States": "states.md", "Backup and restore": "../how-to/backup-and-restore.md"},
    )


def _table(found: Table) -> Iterator[str]:
    model = next(mapper.class_ for mapper in Base.registry.mappers if mapper.local_table is found)
    keys = ", ".join(f"`{column.name}`" for column in found.primary_key.columns)
    yield from (
        f"## {found.name}",
        "",
        " ".join((model.__doc__ or "").split()),
        "",
        f"Key: {keys}. Columns: ",
    )
    others = [column for column in found.columns if not column.primary_key]
    yield ", ".join(f"`{column.name}` {str(column.type).lower()}" for column in others) + "."
    yield ""


# ---- REST


def rest() -> str:
    described = create_api(load(settings=Settings())).openapi()
    body: list[str] = [*_new_task()]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            body += [f"## {method.upper()} {path}", ""]
            if operation.get("description"):
                body += [" ".join(operation["description"].split()), ""]
            body += _parameters(operation, described)
    return page(
        "REST API",
        "JSON in UTF-8; times are RFC 3339. Every route but `/livez`, `/readyz`, `/health`, `/version` and "
        "`/problems` needs an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`. A POST with an "
        "`Idempotency-Key` is done once for seven days, however often it is sent. Errors are "
        "`application/problem+json`, see [error codes](errors.md). Lists answer `data`, `has_more` and "
        "`next_cursor`. `/openapi.json` has every field.",
        body,
        {"Error codes": "errors.md", "The command line": "cli.md", "Producers": "../tutorials/producers.md"},
    )


def _named(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


NEW_TASK = {
    "description": "what is to be done; the only field that is required, at most 100,000 characters",
    "id": "an id of your own: at most 80 letters, digits or any of `_ . : -`, beginning with a letter or "
    "digit; the same id with the same request gives the same task again",
    "title": "one line; by default the description's first",
    "priority": "`critical`, `high`, `medium` (the default) or `low`",
    "repository": "`url` or `path`, `branch`, `credential`: the name of one that [the workers "
    "hold](../how-to/private-repositories.md), and `push`: whether `agent/<task id>` is pushed back (in the "
    "branch's name `:` is `+`, and a dot that git forbids there `=`)",
    "steps": "a plan: a list of `id`, `description`, `needs` (ids), `agent`, `model`, `estimate`, `spec` (an "
    "object of at most 65,536 bytes)",
    "on_step_failure": "`stop` (the default), or `continue` with what doesn't need the failed step",
    "agent": f"`type`: {_named(AGENT_TYPES)}, one that can use the task's model; `capabilities` that it must "
    "have; "
    f"`tool_approval`: the tools and classes of risk ({_named(RISKS)}; `*`: all) whose calls wait for your "
    "approval, in its subtasks, too; tools of MCP servers are called `mcp__server__tool`",
    "model": "the model of steps that name none",
    "budget": "`max_cost_usd`, `max_tokens`, `max_turns`: of all steps together, in one run of the task (a "
    "retry has it anew), beside the installation's limits of each step. It is asked before each request to "
    "a model: steps side by side overshoot it by their requests under way at most, and the step that asks "
    "then fails as `limit-…`; "
    "`max_duration`: of the task, from its first claim on and waiting included; then it fails as "
    "`duration-exceeded`",
    "start": "`false` creates the task paused",
    "requirements": "a list of texts: what the result must be, told to the agent of each step",
    "stakeholders": "a list of names, kept with the task",
    "labels": "names and values, kept with the task",
    "deadline": "a date or time after which the task may not go on and fails as `deadline-exceeded`; one "
    "that has passed already when the task is created is kept with a warning and doesn't bind",
    "external_id": "a name of yours by which the task can be asked for, too",
    "on_question_timeout": '`{"after": "2h", "then": "fail"}`: what becomes of a question that nobody '
    "answers: `fail` (as `question-unanswered`), `default` (the answer that the agent proposed, recorded as "
    "given by `policy`) or `wait`; approvals and budgets only wait or fail; its subtasks inherit it",
    "execution_mode": "`auto`; others are refused as `mode-unavailable`",
}
UNAVAILABLE = (
    *("callback_url", "depends_on", "gates", "parent_id", "project"),
    "validate_only",
)


def _new_task() -> Iterator[str]:
    if {*NEW_TASK, *UNAVAILABLE} != set(TaskRequest.model_fields):
        raise AssertionError({*NEW_TASK, *UNAVAILABLE} ^ set(TaskRequest.model_fields))
    yield from ("## The body of a new task", "")
    yield from table(("Field", "Meaning"), ((f"`{name}`", meaning) for name, meaning in NEW_TASK.items()))
    named = ", ".join(f"`{name}`" for name in UNAVAILABLE)
    yield from (
        "",
        (
            f"Understood, but refused as `mode-unavailable` in this version: {named}, `agent.capabilities`, "
            "and agents of later versions. Fields that begin with `x_` are yours; any other unknown field is "
            "an error, as is an unknown parameter of a query. A request is at most "
            "`ORCHESTRATOR_MAX_BODY_BYTES` long and holds no control characters but tabs and line ends; for "
            "`.delay()` the same holds, and for what a chain hands on the same length."
        ),
        "",
    )


def _parameters(operation: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[str]:
    query = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
    if query:
        yield from ("Query: " + ", ".join(f"`{one['name']}`" for one in query) + ".", "")
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    fields = _fields(content.get("schema", {}), described)
    if fields:
        yield from ("Body: " + ", ".join(f"`{name}`" for name in fields) + ".", "")


def _fields(schema: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    if "$ref" in schema:
        found = described
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return list(schema.get("properties", {}))


# ---- command line


def command_line() -> str:
    root = typer.main.get_command(cli)
    return page(
        "Command line",
        "Data goes to standard output, everything else to standard error; `--json` prints what the API "
        "answers; only the commands that become a process of their own (worker, beat, api, flower, "
        "model-server) write logs instead. Off a terminal there are no colours and no bars, but one line per "
        "event. See also [exit codes](exit-codes.md).",
        _command("orchestrator", root),
        {"Exit codes": "exit-codes.md", "Settings": "settings.md", "First run": "../tutorials/first-run.md"},
    )


def _command(name: str, command: Any) -> Iterator[str]:
    help_text = " ".join(inspect.cleandoc(command.help or "").split("\f")[0].split("\n\n")[0].split())
    shown = [one for one in command.params if one.name not in _BUILT_IN and not getattr(one, "hidden", False)]
    usage = " ".join([name, *(_argument(one) for one in shown if one.param_type_name == "argument")])
    yield from (f"## `{usage}`", "", help_text, "")
    options = [one for one in shown if one.param_type_name == "option"]
    if options:
        yield from table(
            ("Option", "Meaning"),
            (
                (", ".join(f"`{word}`" for word in (*one.opts, *one.secondary_opts)), _help(one))
                for one in options
            ),
        )
        yield ""
    for child, found in getattr(command, "commands", {}).items():
        if not found.hidden:
            yield from _command(f"{name} {child}", found)


_BUILT_IN = {"help", "install_completion", "show_completion"}


def _help(option: Any) -> str:
    return " ".join((option.help or "").split())


def _argument(argument: Any) -> str:
    name = argument.name.upper() + ("…" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings,
    "states.md": states,
    "errors.md": errors,
    "database.md": database,
    "rest.md": rest,
    "cli.md": command_line,
}


def readme_with_diagram(text: str) -> str:
    """The README with the diagram that `core.states.RULES` has now."""
    return re.sub(
        r"```mermaid\n.*?\n```", lambda _: f"```mermaid\n{mermaid()}\n```", text, count=1, flags=re.DOTALL
    )


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for file, make in PAGES.items():
        (REFERENCE / file).write_text(make(), encoding="utf-8")
    readme = REFERENCE.parents[1] / "README.md"
    readme.write_text(readme_with_diagram(readme.read_text("utf-8")), encoding="utf-8")
