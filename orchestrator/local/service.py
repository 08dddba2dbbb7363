"""What the supervisor keeps running, as data."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Probe = Callable[["Started"], bool]
"""True once the service does its work. May raise OSError for "not yet"."""


class StopOrder(IntEnum):
    """Lower ones stop first, those of one number together."""

    WORKER = 10
    BEAT = 20
    FLOWER = 30
    GATEWAY = 35
    API = 40
    REDIS = 50
    POSTGRES = 60


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that a service runs as when that isn't ours."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Started:
    """One run of a service, as its probe sees it. `log_from` is where in the log this run's lines begin."""

    pid: int
    log: Path
    log_from: int


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep running. `argv` and its like show in `ps`, so that secrets go in `env` or in files.

    `env` comes on top of the supervisor's own environment, or alone when `inherits` is false; what `hides`
    names it never gets, nor at a restart. `stop` asks for an orderly end, for which there are `stop_seconds`;
    `abort` is for those who won't wait.
    """

    name: str
    kind: str
    argv: tuple[str, ...]
    ready: Probe
    stop_order: StopOrder
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inherits: bool = True
    hides: frozenset[str] = frozenset()
    folder: Path | None = None
    account: Account | None = None
    port: int | None = None
    stop: signal.Signals = signal.SIGTERM
    abort: signal.Signals = signal.SIGKILL
    ready_seconds: float = 60.0
    stop_seconds: float = 10.0
