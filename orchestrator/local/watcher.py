"""Outlives the supervisor by a moment: `python -m orchestrator.local.watcher FOLDER STACK`.

Its standard input is a pipe that the supervisor holds open and never writes to. However the supervisor ends,
SIGKILL included, the pipe ends with it; then whatever the roster still lists is ended too.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from orchestrator.local import roster


def watch(folder: Path, stack: str) -> None:
    """Returns when the supervisor has ended and nothing of its stack is left."""
    sys.stdin.buffer.read()
    left = roster.read(folder)
    if left and left.stack == stack:
        roster.sweep(left)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch(Path(sys.argv[1]), sys.argv[2])
