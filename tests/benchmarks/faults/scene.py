"""What all faults are given, and how they are undone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.bootstrap import Wiring
from tests.benchmarks.installation import Installation
from tests.benchmarks.relay import Way

Injector = Callable[[], bool]
"""Says whether it found something to hurt."""
Kinds = Mapping[str, tuple[int, Injector]]
"""Name → how often among the others, and what does it."""


@dataclass
class Later:
    """What must be done when its time has come; `about` names the process that it brings back."""

    at: float
    do: Callable[[], None]
    about: str | None = None


@dataclass
class Repairs:
    """A stopped process goes on, a stopped beat comes back, a full disk is emptied."""

    _later: list[Later] = field(default_factory=list)
    _timers: dict[threading.Timer, Callable[[], None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def after(self, seconds: float, do: Callable[[], None], about: str | None = None) -> None:
        """By the harness's own thread, which alone may start processes."""
        self._later.append(Later(time.monotonic() + seconds, do, about))

    def surely(self, seconds: float, do: Callable[[], None]) -> None:
        """By a thread of its own, even if the harness's waits for exactly this."""

        def once() -> None:
            with self._lock:
                mine = self._timers.pop(timer, None)
            if mine is not None:
                mine()

        timer = threading.Timer(seconds, once)
        timer.daemon = True
        with self._lock:
            self._timers[timer] = do
        timer.start()

    @property
    def outage(self) -> bool:
        """A server, a way, the disk or a remote is out of order just now."""
        return bool(self._timers)

    def do_due(self) -> None:
        now = time.monotonic()
        due = [later for later in self._later if later.at <= now]
        self._later = [later for later in self._later if later.at > now]
        for later in due:
            later.do()

    def awaits(self, name: str) -> bool:
        """Whether the process of this name is down on purpose."""
        return any(later.about == name for later in self._later)

    def do_all(self) -> None:
        with self._lock:
            timers, self._timers = self._timers, {}
        for timer, do in timers.items():
            timer.cancel()
            do()
        later, self._later = self._later, []
        for one in later:
            one.do()


@dataclass
class Scene:
    """The installation under test; used by the thread that owns it."""

    here: Installation
    wiring: Wiring
    chance: random.Random
    workers: tuple[str, ...]
    lease: float
    ways: Mapping[str, Mapping[str, Way]]
    remote: Path
    """The repository that tasks push to."""
    small_disk: bool
    """The workers' data is on a disk that can be filled."""
    repairs: Repairs = field(default_factory=Repairs)
    stopped: set[int] = field(default_factory=set)
    """Processes that get no time just now."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Task → the commit that somebody else put where its branch is to be pushed."""

    def worker(self) -> str:
        return self.chance.choice(self.workers)

    def has_ended(self, name: str) -> bool:
        return self.here.supervisor._runs[name].process.poll() is not None

    def children(self, name: str) -> list[int]:
        return [one.pid for one in self.here.children(name) if one.pid not in self.stopped]
