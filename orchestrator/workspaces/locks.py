"""A lock between the processes of one machine that a killed holder gives up by dying."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.workspaces.errors import GitError


@contextmanager
def held(path: Path, stop: Stop | None = None) -> Iterator[None]:
    """Waits for its turn; `GitError` at a hard `stop` meanwhile. The file stays: its inode is the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = stop or Stop()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting.wait_hard(0.02):
                    raise GitError("stopped while waiting for another fetch", ErrorClass.TIMEOUT) from None
        yield
    finally:
        os.close(descriptor)
