"""What Aider's model said last, read from the history of its chat: for people, without what becomes files.

The history is Markdown: each line of what the model is told begins with `####`, each of what the program says
with `>`, and the rest is the model's.
"""

from __future__ import annotations

import re
from typing import Final

_TOLD: Final = "####"
_PROGRAM: Final = "> "
_BEGUN: Final = "# aider chat started"
_CHANGED: Final = "> Applied edit to "
_MOST_FILES: Final = 20
_EDIT: Final = re.compile(
    r"(?:^[^\n`]{1,300}\n)?^```[^\n]*\n<{5,9} SEARCH\b.*?^>{5,9} REPLACE[^\n]*\n```[^\n]*$\n?",
    re.MULTILINE | re.DOTALL,
)
"""A file's name, and in a fence what is replaced there by what."""


def last_words(history: str) -> str:
    """The last answer, and in a line which files were changed by any."""
    lines = history.splitlines()
    told = [place for place, line in enumerate(lines) if line.startswith(_TOLD)]
    said = [line for line in lines[told[-1] + 1 if told else 0 :] if not _is_programs(line)]
    words = re.sub(r"\n{3,}", "\n\n", _EDIT.sub("", "\n".join(said))).strip()
    files = [line[len(_CHANGED) :].strip() for line in lines if line.startswith(_CHANGED)]
    return "\n\n".join(filter(None, (words, _changed(list(dict.fromkeys(files))))))


def _is_programs(line: str) -> bool:
    return line.startswith((_PROGRAM, _BEGUN))


def _changed(files: list[str]) -> str:
    if not files:
        return ""
    more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
    return f"Changed: {', '.join(files[:_MOST_FILES])}{more}"
