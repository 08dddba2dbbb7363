"""A worker of some module's app, as `orchestrator worker` runs it, without all that Celery's program loads.

`python -m tests.integration.celery_worker tests.integration.harness --hostname one@test --pool threads …`
"""

from __future__ import annotations

import argparse
import importlib
import sys

from orchestrator.cli.loading import loading

with loading():
    from orchestrator.tasks.programs import run_worker


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("app")
    for name in ("hostname", "queues", "pool", "concurrency", "loglevel"):
        words.add_argument(f"--{name}", required=True)
    given = words.parse_args()
    with loading():
        app = importlib.import_module(given.app).app
    return run_worker(
        app,
        given.hostname,
        given.queues.split(","),
        pool=given.pool,
        slots=int(given.concurrency),
        log_level=given.loglevel,
    )


if __name__ == "__main__":
    sys.exit(main())
