"""How long a server wants us to wait, by its headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST: Final = timedelta(days=1)
"""A wish beyond this is taken for a mistake."""
_ANTHROPIC: Final = "anthropic-ratelimit-"
_OPENAI: Final = "x-ratelimit-"
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> timedelta | None:
    """`retry-after-ms`, else `retry-after` (seconds or a date), else when the limit that is used up will be
    there again. None: it says nothing that can be used. Names are in lower case; `now` is a test's.
    """
    clock = _date(headers.get("date", "")) or now or datetime.now(UTC)
    wishes = (
        _number(headers.get("retry-after-ms", ""), 0.001),
        _number(headers.get("retry-after", ""), 1.0),
        _until(_date(headers.get("retry-after", "")), clock),
        max(_resets(headers, clock), default=None),
    )
    return next((wish for wish in wishes if wish is not None), None)


def _resets(headers: Mapping[str, str], clock: datetime) -> Iterator[timedelta]:
    """Of each limit that has nothing left, when it starts anew."""
    for name, left in headers.items():
        if left.strip() != "0":
            continue
        if name.startswith(_ANTHROPIC) and name.endswith("-remaining"):
            wish = _until(_moment(headers.get(name.removesuffix("remaining") + "reset", "")), clock)
        elif name.startswith(f"{_OPENAI}remaining-"):
            wish = _span(headers.get(f"{_OPENAI}reset-{name.removeprefix(f'{_OPENAI}remaining-')}", ""))
        else:
            continue
        if wish is not None:
            yield wish


def _number(text: str, unit: float) -> timedelta | None:
    try:
        return _sensible(float(text) * unit)
    except ValueError:
        return None


def _span(text: str) -> timedelta | None:
    """As in `1h2m3.5s` and `20ms`; a bare number is seconds."""
    parts = _SPAN.findall(text)
    if "".join(f"{number}{unit}" for number, unit in parts) != text.strip():
        return _number(text, 1.0)
    return _sensible(sum(float(number) * _UNITS[unit] for number, unit in parts)) if parts else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _until(moment: datetime | None, clock: datetime) -> timedelta | None:
    return None if moment is None else _sensible((moment - clock).total_seconds())


def _sensible(seconds: float) -> timedelta | None:
    """Nothing for what is past, endless, or no number."""
    return timedelta(seconds=seconds) if 0 <= seconds <= LONGEST.total_seconds() else None
