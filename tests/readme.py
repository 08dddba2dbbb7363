"""What the README, the tutorials and the how-to pages tell people to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDES = tuple(
    sorted(page for kind in ("tutorials", "how-to") for page in (ROOT / "docs" / kind).glob("*.md"))
)

_COMMANDS = "tests/acceptance/test_readme_commands.py"
_COMPOSE = "tests/integration/test_compose.py"
_MODEL = "tests/integration/test_model_server.py"
_OPERATE = "tests/integration/test_cli_operate.py"
_STACK = "tests/integration/test_local_stack.py"
STARTED_BY = {
    "./scripts/demo": "tests/acceptance/test_demo.py",
    "orchestrator up": _COMMANDS,
    "orchestrator up --workers 4 --concurrency 2": _COMMANDS,
    "orchestrator up --listen 192.0.2.10": "tests/integration/test_local_listen.py",
    "orchestrator down": _STACK,
    "orchestrator db upgrade": _OPERATE,
    "orchestrator db restore orchestrator.dump": _OPERATE,
    "orchestrator api & orchestrator beat & orchestrator worker --queues system --name system &": _COMPOSE,
    "ANTHROPIC_API_KEY=… orchestrator gateway &": _COMPOSE,
    "FLOWER_BASIC_AUTH=operator:… orchestrator flower --port 5555": _COMPOSE,
    'orchestrator task create -d "Fix the failing test" --repo https://forge.example/team/project.git '
    "--credential forge --push": "tests/integration/test_credentials.py",
    "orchestrator model-server --script script.json --port 8801 --log sends.jsonl": _MODEL,
    "curl http://127.0.0.1:8801/_control/faults -H 'content-type: application/json' -d "
    """'{"kind": "overloaded", "times": 2}'""": _MODEL,
    "orchestrator model-server --record talk.jsonl --upstream https://api.anthropic.com": (
        "tests/integration/test_model_recordings.py"
    ),
    "orchestrator model-server --replay talk.jsonl": "tests/integration/test_model_recordings.py",
    "cp -a ~/.local/share/orchestrator/default /somewhere/safe": _STACK,
    "pip install 'orchestrator[local]'": "tests/smoke/test_image.py",
    "apt-get install bubblewrap": "tests/smoke/test_image.py",
}
"""Commands that aren't run as they stand, and the test that starts the same thing."""


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path = README) -> list[str]:
    """Every line of a console block that begins with a prompt, and every line of a shell block."""
    typed = [
        line.removeprefix("$ ")
        for block in blocks("console", page)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    typed += [line for block in blocks("sh", page) for line in block.splitlines() if line]
    return [re.sub(r"\s+# .*", "", line).replace(".venv/bin/orchestrator", "orchestrator") for line in typed]
