"""What the README tells people to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

STARTED_BY = {
    "./scripts/demo": "tests/acceptance/test_demo.py",
    "orchestrator up": "tests/acceptance/test_readme_commands.py",
}
"""Commands that aren't run as they stand, and the test that starts the same thing."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a console block that begins with a prompt."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
