"""The beat of the benchmarks: `python -m tests.benchmarks.beat SCHEDULE`."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.cli.loading import loading

with loading():
    from orchestrator.tasks.programs import run_beat
    from tests.benchmarks.worker import app

if __name__ == "__main__":
    run_beat(app, Path(sys.argv[1]), log_level="INFO")
