"""Where an installation keeps its data unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

IN_HOME: Final = "~/.local/share"


def usual(environment: Mapping[str, str]) -> Path:
    """Below XDG_DATA_HOME, of which one that isn't absolute counts as none. `~` isn't expanded."""
    named = environment.get("XDG_DATA_HOME", "")
    return Path(named if named.startswith("/") else IN_HOME, "orchestrator", "default")
