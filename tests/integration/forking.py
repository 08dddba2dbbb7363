"""Workers of the tests, forked from a process that has loaded what all of them load.

A worker takes a second of processor to start and to end, two thirds of it to load what never changes. Here
that is loaded once for a whole session of tests, in a process without threads or connections. Only
`orchestrator.tasks`, which reads the settings when it is loaded, is left to each worker.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

from orchestrator.cli.loading import loading
from orchestrator.queues.settings import WORKER_ENVIRONMENT

_REPOSITORY: Final = Path(__file__).parent.parent.parent
_LOADED: Final = (
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.pidbox",
    "celery.worker.strategy",
    "kombu.transport.redis",
    "orchestrator.agents.by_type",
    "orchestrator.agents.engine",
    "orchestrator.agents.models",
    "orchestrator.bootstrap",
    "orchestrator.commands.submit",
    "orchestrator.engine.tools.policy",
    "orchestrator.engine.web",
    "orchestrator.queries.tasks",
    "orchestrator.queues.app",
    "orchestrator.workspaces.checkouts",
    "structlog",
    "tests.agents_ready",
)


@dataclass
class Forked:
    """A worker's process, which the one that forked it waits for; used as a `Popen` is."""

    pid: int
    _end: socket.socket = field(repr=False)
    """Says the exit status in a line when the process has ended."""
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._end.settimeout(timeout)
            try:
                self.returncode = int(_line(self._end))
            except TimeoutError:
                raise subprocess.TimeoutExpired("the worker", timeout or 0) from None
            self._end.close()
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
    """`python -m tests.integration.celery_worker …words`, with its output in `log`."""
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(_source())
    order = {"words": list(words), "environment": dict(environment), "log": str(log)}
    caller.sendall(json.dumps(order).encode() + b"\n")
    return Forked(int(_line(caller)), caller)


def _line(said: socket.socket) -> bytes:
    """Not a byte more, for the next line has another reader."""
    line = b""
    while not line.endswith(b"\n") and (byte := said.recv(1)):
        line += byte
    return line


@cache
def _source() -> str:
    """Where the process that forks them listens; it ends with this one."""
    folder = tempfile.mkdtemp(prefix="workers-")  # a socket's path must be short
    address = f"{folder}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.forking", address],
        env={**os.environ, **WORKER_ENVIRONMENT},
        cwd=_REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"

    atexit.register(process.communicate)
    return address


# ---- the process that forks


def main(address: str) -> None:
    """Until its standard input ends."""
    with loading():
        for name in _LOADED:
            import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            caller, _ = door.accept()
            with caller:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    door.close()
                    _mind(caller)
                    return
    shutil.rmtree(Path(address).parent)


def _mind(caller: socket.socket) -> None:
    """Forks one worker, and says its id and, at its end, its exit status."""
    with caller.makefile() as told:
        order = json.loads(told.readline())
    worker = os.fork()
    if worker == 0:
        caller.close()
        _become(order["words"], order["environment"], order["log"])
    caller.sendall(b"%d\n" % worker)
    _, status = os.waitpid(worker, 0)
    caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(words: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for place, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(descriptor, place)
    sys.argv[1:] = words
    sys.exit(import_module("tests.integration.celery_worker").main())


if __name__ == "__main__":
    main(sys.argv[1])
