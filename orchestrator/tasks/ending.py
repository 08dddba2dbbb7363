"""How a Celery worker ends on a signal: the handler takes a note, the loop does the work.

Celery's own handler does all of it, the waiting included, wherever the main thread happens to be: amid a
pool's submission, say, whose lock it then wants a second time, and waits for ever.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

from celery import bootsteps, platforms, signals
from celery.apps.worker import on_cold_shutdown  # type: ignore[attr-defined]  # newer than its stubs
from celery.platforms import EX_FAILURE
from celery.worker import state

from orchestrator.tasks.draining import Drain

_SIGNALS: Final = ("SIGTERM", "SIGQUIT", "SIGINT")


def end_by_loop(worker: Any, drain: Drain, patience_seconds: float) -> None:
    """Ties a worker that Celery is about to set up to how it ends."""
    # Celery sleeps for all of the time, and says that it shuts down only after it.
    worker.wait_for_soft_shutdown = drain.wait
    worker.asks_to_end = lambda: drain.ask(patience_seconds)
    terminate = worker.terminate

    def drain_and_terminate(in_sighandler: bool = False) -> None:
        if drain.is_asked():
            signals.worker_shutting_down.send(
                sender=worker.hostname, sig="TERM", how="Cold", exitcode=EX_FAILURE
            )
            on_cold_shutdown(worker)
        terminate(in_sighandler)

    worker.terminate = drain_and_terminate
    worker.app.steps["worker"].add(Ending)


class Ending(bootsteps.StartStopStep):
    """Signals of a worker: from its first one on it gives back what it has, and its loop ends it.

    Ctrl-C is no exception: Celery would wait until the last agent has finished, for hours.
    """

    requires = ("celery.worker.components:Hub",)

    def create(self, _worker: Any) -> None:
        self._wakes, self._woken = socket.socketpair()
        self._wakes.setblocking(False)
        self._woken.setblocking(False)

    def start(self, worker: Any) -> None:
        def ask(*_: Any) -> None:
            worker.asks_to_end()
            state.should_terminate = EX_FAILURE  # type: ignore[assignment]
            with suppress(OSError):
                self._wakes.send(b"\0")

        for name in _SIGNALS:
            platforms.signals[name] = ask

    def register_with_event_loop(self, _worker: Any, hub: Any) -> None:
        """Each time that the worker has connected to the broker anew."""
        hub.add_reader(self._woken, self._wake)

    def _wake(self) -> None:
        """The loop looks whether it should end each time that it has read something."""
        with suppress(OSError):
            self._woken.recv(64)
