"""What processes really cost: PSS, which divides a shared page among those that have it: sums are true."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.local import processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.local.processes import Identity


def pss(pid: int) -> int | None:
    """Bytes; None when it is gone, belongs to someone else, or the system doesn't say (only Linux does)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return None
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def total(identities: Iterable[Identity]) -> int:
    """Bytes of all of them together."""
    return sum(pss(identity.pid) or 0 for identity in identities)


def of_family(pid: int) -> int:
    """Bytes of a process and all that descend from it."""
    return total(processes.family([pid]))
