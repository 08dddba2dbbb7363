"""Deletes a folder that an agent has written in."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestrator.core.workspace import WorkspaceFault


def remove_folder(folder: Path) -> None:
    """However deep it is and whatever its modes are; links in it are removed, not followed."""
    for preparation in ((), ("chmod", "-R", "u+rwX", "--", str(folder))):
        if preparation:
            subprocess.run(preparation, check=False, capture_output=True)
        subprocess.run(("rm", "-rf", "--", str(folder)), check=False, capture_output=True)
        if not folder.exists():
            return
    raise WorkspaceFault("workspace-stuck", f"{folder.name} can't be removed")
