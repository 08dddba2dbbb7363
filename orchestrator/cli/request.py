"""The body of a new task, from options and files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import Refused

_SAME: Final = (
    *("title", "priority", "model", "deadline", "external_id", "id", "stakeholders"),
    *("gates", "depends_on", "project", "validate_only"),
)


_OPTIONS: Final = {
    "budget.max_cost_usd": "budget",
    "budget.max_duration": "timeout",
    "on_question_timeout.after": "question_timeout",
    "on_question_timeout.then": "on_silence",
    "agent.tool_approval": "ask_before",
    "repository.credential": "credential",
    "execution_mode": "mode",
    **{name: name for name in ("priority", "deadline", "title", "model", "external_id", "id")},
}
"""Fields as the server names them → the options that filled them."""


def by_option(error: Refused, given: Mapping[str, Any]) -> Refused:
    """The server's words about a field, said of the option that it came from."""
    place, colon, said = error.message.partition(": ")
    field = place.rstrip("0123456789").rstrip(".")
    option = _OPTIONS.get(field, "")
    if not colon or not given.get(option):
        return error
    others = tuple(fault for fault in error.problems if fault.detail != said)
    flag = f"--{option.replace('_', '-')}"
    return Refused(error.code, f"{flag}: {said}", "Correct it and send it again.", others, error.retryable)


def build(file: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What options say goes before what `file` says. Whether it is valid is the server's to say."""
    body: dict[str, Any] = _object(file) if file else {}
    body |= {name: given[name] for name in _SAME if given[name]}
    body |= dict(_converted(given))
    agent = {"type": given["agent"], "tool_approval": given["ask_before"]}
    if any(agent.values()):
        body["agent"] = {**body.get("agent", {}), **{name: v for name, v in agent.items() if v}}
    if given["on_silence"] and not given["question_timeout"]:
        raise Refused("option-invalid", "--on-silence needs a time.", "Add --question-timeout 2h.")
    if given["question_timeout"]:
        then = given["on_silence"] or "fail"
        body["on_question_timeout"] = {"after": given["question_timeout"], "then": then}
    limits = {"max_cost_usd": given["budget"], "max_duration": given["timeout"]}
    if any(limits.values()):
        body["budget"] = {
            **body.get("budget", {}),
            **{name: value for name, value in limits.items() if value},
        }
    if any(given[name] for name in ("repo", "branch", "push", "credential")):
        body["repository"] = _repository(body.get("repository", {}), given)
    return body


def _converted(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if given["description"] is not None:
        said = _text(given["description"])
        if not said.strip():
            raise Refused("option-invalid", "--description is empty.", "Say what is to be done.")
        yield "description", said
    if given["mode"]:
        yield "execution_mode", given["mode"]
    if given["requirements"]:
        yield "requirements", [part.strip() for part in given["requirements"].split(",") if part.strip()]
    if given["labels"]:
        yield "labels", dict(_label(text) for text in given["labels"])
    if given["steps"]:
        yield "steps", _steps(given["steps"])
    if given["hold"]:
        yield "start", False


def _repository(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(known)
    if repo := given["repo"]:
        found = {name: value for name, value in found.items() if name not in {"url", "path"}}
        here = Path(repo).expanduser()
        # A path is one if it is there, or looks like one: host:path and https://… don't.
        local = here.exists() or repo.startswith((".", "/", "~"))
        found["path" if local else "url"] = str(here.resolve()) if local else repo
    if given["branch"]:
        found["branch"] = given["branch"]
    if given["credential"]:
        found["credential"] = given["credential"]
    if given["push"]:
        found["push"] = True
    return found


def _text(given: str) -> str:
    if given == "-":
        return _read(Path("-"))
    return _read(Path(given[1:])) if given.startswith("@") else given


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Refused("option-invalid", f"--label {text!r} has no value.", "Write --label key=value.")
    return name, value


def _steps(file: Path) -> Any:
    found = _json(file)
    return found.get("steps") if isinstance(found, dict) else found


def _object(file: Path) -> dict[str, Any]:
    found = _json(file)
    if not isinstance(found, dict):
        raise Refused("file-invalid", f"{file} holds no JSON object.", 'Write {"description": "…"}.')
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except ValueError as error:
        raise Refused("file-invalid", f"{file} is not JSON: {error}.", "Correct it.") from None


def _read(file: Path) -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8") if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        what = "stdin" if str(file) == "-" else file
        raise Refused("file-unreadable", f"Can't read {what} ({why}).", "Name another file.") from None
