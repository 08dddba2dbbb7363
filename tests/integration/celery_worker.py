"""A worker of some module's app, as `orchestrator worker` runs it, without all that Celery's program loads.

`python -m tests.integration.celery_worker tests.integration.harness --hostname one@test --pool threads …`
"""

from __future__ import annotations

import argparse
import importlib
import sys

from celery.utils.log import mlevel


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("app")
    for name in ("hostname", "queues", "pool", "concurrency", "loglevel"):
        words.add_argument(f"--{name}", required=True)
    given = words.parse_args()
    worker = importlib.import_module(given.app).app.Worker(
        hostname=given.hostname,
        queues=given.queues.split(","),
        pool_cls=given.pool,
        concurrency=int(given.concurrency),
        loglevel=mlevel(given.loglevel),
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
