"""What was spent, said no more exactly than it is known."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def spent(cost: Mapping[str, Any], *, is_complete: bool, places: int = 4) -> str:
    """`$0.1234`, `at least $0.1234`, or `price unknown` where nothing that was used has a known price."""
    shown = f"${Decimal(cost['amount']):.{places}f}"
    if is_complete:
        return shown
    return f"at least {shown}" if Decimal(cost["amount"]) else "price unknown"
