"""Spans of time as people write them: 30s, 10m, 24h, 7d."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from orchestrator.core.errors import Refused

_SPAN: Final = re.compile(r"(\d{1,9})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def seconds(text: str) -> float:
    """Raises Refused `option-invalid`."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise Refused("option-invalid", f"{text!r} is no span of time.", "Write 30s, 10m, 24h or 7d.")
    return timedelta(**{_UNITS[found.group(2)]: int(found.group(1))}).total_seconds()
