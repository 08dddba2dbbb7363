"""What is written to a terminal or a pipe: data on stdout, talk on stderr, no control characters."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
_NARROWEST: Final = 7
"""What a column but the first takes at least, with the space before it."""
_WHOLE: Final = 2
"""Columns that are never cut: what it is, and how it stands. The next may be cut, and is still one line."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
TONES: Final = {"active": "cyan", "attention": "yellow", "good": "green", "bad": "red", "neutral": "default"}


def clean(text: str) -> str:
    """With every character that a terminal would obey shown instead; line ends and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def line(text: str) -> str:
    """Cleaned, and one line."""
    return clean(" ".join(text.split()))


def interactive() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Talk: to people, not into a pipe."""
    print(clean(text), file=sys.stderr)


def out(text: str) -> None:
    print(clean(text), flush=True)


def print_json(value: Any) -> None:
    """ASCII only: nothing in it can speak to a terminal."""
    print(json.dumps(value, indent=2 if interactive() else None), flush=True)


def print_line(value: Any) -> None:
    """One of several objects, each a line."""
    print(json.dumps(value), flush=True)


def console() -> Any:
    """A rich console; NO_COLOR and --no-color are honoured."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, tones: Sequence[str] = ()) -> None:
    """Aligned on a terminal; in a pipe tab-separated, without a head. `tones` colour the second column.
    Where a terminal is too narrow for columns each row is two lines, so that no cell is lost."""
    if not interactive():
        for row in rows:
            print("\t".join(line(cell) for cell in row))
        return
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    screen = console()
    widest = max((cell_len(line(row[0])) for row in rows), default=0)
    if screen.width < widest + _NARROWEST * (len(columns) - 1):
        for row in rows:
            first, *rest = map(line, row)
            out(f"{first}\n  {' · '.join(filter(None, rest))}")
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(column.upper(), no_wrap=number < _WHOLE, overflow="ellipsis")
    for number, row in enumerate(rows):
        cells = [Text(line(cell), no_wrap=place <= _WHOLE or None) for place, cell in enumerate(row)]
        if tones:
            cells[1].stylize(TONES.get(tones[number], "default"))
        drawn.add_row(*cells)
    screen.print(drawn)


def since(moment: str | None) -> str:
    """How long ago an RFC 3339 time is, short."""
    if not moment:
        return ""
    return span((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 10:  # noqa: PLR2004 - short spans are worth a decimal
        return f"{seconds:.1f}s"
    if seconds < _MINUTE:
        return f"{seconds:.0f}s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f}m{seconds % _MINUTE:02.0f}s"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f}h{seconds % _HOUR // _MINUTE:02.0f}m"
    return f"{seconds // _DAY:.0f}d"
