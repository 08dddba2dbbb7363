"""What a process loads for the models that it asks."""

from __future__ import annotations

import subprocess
import sys

WHAT_IS_LOADED = """
import sys
from orchestrator.core.assignment import ModelAccess
from orchestrator.engine.providers.making import make
print(*sorted({"anthropic", "openai"} & set(sys.modules)))
make(NAME, ModelAccess("http://127.0.0.1:1", "token"))
print(*sorted({"anthropic", "openai"} & set(sys.modules)))
"""


def test_a_process_loads_the_sdk_of_the_model_it_asks_and_no_other() -> None:
    script = WHAT_IS_LOADED.replace("NAME", repr("gpt-5.2"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["", "openai", ""], done.stderr
