"""The worker of the tests, told to end whenever its main thread holds the lock of its pool of threads.

Run by `tests.integration.celery_worker`, with a pool of threads.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from celery.concurrency import thread

from tests.integration import harness

app = harness.app


class Interrupted(ThreadPoolExecutor):
    def _adjust_thread_count(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # submit() calls this under its lock
        super()._adjust_thread_count()


vars(thread)["ThreadPoolExecutor"] = Interrupted
