"""What a conversation must not lose when its past is summed up: kept word for word, by the loop itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.engine.ports import Block, ToolResult
from orchestrator.engine.tools.tool import Risk, Tool
from orchestrator.engine.untrusted import cut

_EXIT: Final = re.compile(r"exit code (-?\d+)\b")
_LATEST_COMMANDS: Final = 50
_TEXT: Final = 4000
"""Characters of one text in a summary."""
_SECTION: Final = 20_000
"""Characters of all that a person said, of all answers, and of all files, each: a summary must stay shorter
than what it stands for, however much there was."""
_PATCHED: Final = re.compile(r"^(?:--- a/|\+\+\+ b/)([^\t\n]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ran:
    """A command; `exit_code` None: it was killed, or nobody knows."""

    command: str
    exit_code: int | None


class Memory:
    """Fed with each message and each finished call, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answers: list[tuple[str, str]] = []
        self.files: dict[str, str] = {}
        """path → the tool that changed it last."""
        self.commands: list[Ran] = []
        """The latest ones."""
        self.plan: Mapping[str, Any] | None = None

    def hear(self, text: str) -> None:
        self.heard.append(text)

    def keep(self, call: Block, tool: Tool[Any] | None, result: ToolResult) -> None:
        """What a finished call means for later; one that failed changed no file."""
        arguments = call["input"]
        if tool is None:
            return
        if tool.risk is Risk.EXECUTE and isinstance(command := arguments.get("command"), str):
            found = _EXIT.match(result.text)
            self.commands.append(Ran(cut(command, 500), int(found[1]) if found else None))
            del self.commands[:-_LATEST_COMMANDS]
        if result.is_error:
            return
        if tool.name == "ask_followup_question":
            self.answers.append((str(arguments.get("question")), result.text))
        elif tool.name == "update_plan":
            self.plan = arguments
        elif tool.changes_files and tool.risk is Risk.WRITE:
            for path in _paths(arguments):
                self.files.pop(path, None)
                self.files[path] = tool.name

    def evidence(self) -> dict[str, Any]:
        """What a claim to be done can be held against: commands with their exit codes, and changed files."""
        return {
            "commands": [{"command": ran.command, "exit_code": ran.exit_code} for ran in self.commands],
            "files": list(self.files),
        }

    def as_text(self) -> str:
        """For the model, which has forgotten the rest."""
        return "\n".join(self._lines()) or "(nothing)"

    def _lines(self) -> Iterator[str]:
        said = [f"The person who watches said: {cut(text, _TEXT)}" for text in self.heard]
        yield from _latest(said, "earlier messages of theirs")
        answered = (f"You asked: {cut(q, _TEXT)}\nThe answer: {cut(a, _TEXT)}" for q, a in self.answers)
        yield from _latest(list(answered), "earlier questions and answers")
        if self.plan is not None:
            yield f"Your plan: {cut(str(dict(self.plan)), _TEXT)}"
        if self.files:
            changed = [f"{path!r} ({by})" for path, by in self.files.items()]
            yield "Files that you changed: " + ", ".join(_latest(changed, "files changed before these"))
        if self.commands:
            latest = self.commands[-10:]
            yield "Commands that you ran last: " + "; ".join(f"{r.command!r} → {_code(r)}" for r in latest)


def _latest(texts: Sequence[str], rest: str) -> list[str]:
    """As many of the last ones, in their order, as a summary has room for; how many came before is said."""
    room, first = _SECTION, len(texts)
    while first and room >= len(texts[first - 1]):
        first -= 1
        room -= len(texts[first])
    return [*([f"({first} {rest} are left out here)"] if first else []), *texts[first:]]


def _code(ran: Ran) -> str:
    return "outcome unknown" if ran.exit_code is None else f"exit code {ran.exit_code}"


def _paths(arguments: Mapping[str, Any]) -> list[str]:
    """Those that it names, or that its patch changes."""
    named = [value for name in ("path", "to") if isinstance(value := arguments.get(name), str)]
    patch = arguments.get("patch")
    return named + (_PATCHED.findall(patch) if isinstance(patch, str) else [])
