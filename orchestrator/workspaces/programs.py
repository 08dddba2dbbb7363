"""A long-running program in the sandbox: it is talked to through pipes, told to end, and then made to.

What it started is found by the namespace, the control group and, wherever it has detached itself to, by the
mark `ORCH_RUN_ID` in its environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Final

from orchestrator.workspaces.cgroup import Group
from orchestrator.workspaces.kin import Kindred, kill_marked, marked

RUN_MARK: Final = "ORCH_RUN_ID"
GONE_WITHIN: Final = 2.0
"""Seconds in which the kernel has cleared away what was killed."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of ours, and where a sandboxed command finds it."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """What to start. `mark` begins with the pid of the worker and a dash, and names this one run."""

    words: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    folder: str
    mark: str
    memory_bytes: int
    wall_time: timedelta
    """From it follows the processor time that each process may use; the clock is the caller's to watch."""


class Running:
    """A program that was started. Its three pipes are unbuffered and the caller's to read and to write."""

    def __init__(
        self, process: subprocess.Popen[bytes], kin: Kindred, mark: str, group: Group | None
    ) -> None:
        self._process = process
        self._kin = kin
        self._mark = mark
        self._group = group
        self._ending = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 - started with a pipe
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - started with a pipe
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        assert self._process.stderr is not None  # noqa: S101 - started with a pipe
        return self._process.stderr

    def code(self) -> int | None:
        """The exit code as a shell says it; None while it runs."""
        found = self._process.poll()
        return 128 - found if found is not None and found < 0 else found

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it still runs after that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.code()

    def too_many(self) -> bool:
        """Whether it has forked beyond the sandbox's bound; to be asked now and then."""
        return self._kin.too_many()

    def terminate(self) -> None:
        """SIGTERM to the program itself; it may still clear up."""
        self._kin.terminate()

    def end(self, *, closing: float = 1.0, terminating: float = 1.0) -> int | None:
        """Ends it whatever it does: its input closed, SIGTERM, SIGKILL, each after so many seconds; then all
        that it left. Its exit code, None if it had to be killed. May be called again, from any thread."""
        with self._ending:
            with contextlib.suppress(OSError, ValueError):
                self.stdin.close()
            code = self.wait(closing)
            if code is None:
                self.terminate()
                code = self.wait(terminating)
            self._sweep()
            for pipe in (self.stdout, self.stderr):
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()
            return code

    def left(self) -> list[int]:
        """Processes, wherever they are, that carry the run's mark."""
        return marked(self._mark)

    def _sweep(self) -> None:
        self._kin.kill()
        kill_marked(self._mark)
        self.wait(GONE_WITHIN)
        until = time.monotonic() + GONE_WITHIN
        while self.left() and time.monotonic() < until:
            time.sleep(0.01)
            kill_marked(self._mark)
        if self._group is not None:
            self._group.kill()
            self._group.remove()
            self._group = None
        self.wait(GONE_WITHIN)  # many die slowly, and what isn't waited for stays as a zombie


@contextmanager
def arguments_file(words: Sequence[str]) -> Iterator[IO[bytes]]:
    """An open file without a name that holds the words as bubblewrap's --args reads them."""
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(os.fsencode(word) + b"\0" for word in words))
        file.flush()
        file.seek(0)
        yield file
