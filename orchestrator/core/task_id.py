"""The ids of tasks: which ones a caller may choose, and what git and folders call them.

An id may hold what the name of a branch or of a folder may not (`a:b`, `a..b`, `a.lock`). Such a name is
spelled with two signs that no id holds, `+` for a colon and `=` for a dot that may not stand where it does:
as long as the id, readable, and different for different ids.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 80
RULE: Final = f"must be 1 to {LONGEST} letters, digits or any of _ . : - and begin with a letter or digit"
BRANCHES: Final = "agent/"

_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:-]{{0,{LONGEST - 1}}}")
_FORBIDDEN_DOT: Final = re.compile(r"\.(?=\.|$|lock$)")


def is_task_id(text: object) -> bool:
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def spelled(name: str) -> str:
    """An id, or a name made of one, as one part of a path and of a reference of git."""
    return _FORBIDDEN_DOT.sub("=", name.replace(":", "+"))


def read(name: str) -> str:
    """What `spelled` was given."""
    return name.replace("+", ":").replace("=", ".")


def branch(task_id: str) -> str:
    """The branch that the task's work becomes, as people type it."""
    return BRANCHES + spelled(task_id)
