"""What is missing on this machine, and what to do about it. Looks only; changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from orchestrator.core.errors import OrchestratorError
from orchestrator.local import ports, postgres_programs, probes, processes, redis, roster
from orchestrator.workspaces.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from orchestrator.config import Settings

OLDEST_GIT: Final = (2, 38)
"""The first whose `merge-tree --write-tree` merges without a checkout."""
OLDEST_PYTHON: Final = (3, 11)

_ENOUGH_DISK_BYTES: Final = 5 * 1024**3
_LEAST_DISK_BYTES: Final = 512 * 1024**2
_WHEEL_PYTHONS: Final = ((3, 11), (3, 12))


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `why` and `fix` are empty when it is as it should be."""

    level: Level
    what: str
    why: str = ""
    fix: str = ""


def examine(settings: Settings, environment: Mapping[str, str]) -> tuple[Finding, ...]:
    """All of it, in the order in which it matters. An ERROR keeps `orchestrator up` from working."""
    running = roster.read(settings.data_dir)
    up = running is not None and processes.alive(running.supervisor)
    return (
        _python(),
        _git(),
        sandbox(settings),
        _postgres(settings),
        _redis(settings),
        *(_ports(settings) if not up else ()),
        _disk(settings.data_dir),
        _key(settings),
        *_entry_points(environment),
        *rabbitmq(settings, environment),
    )


def _python() -> Finding:
    version = sys.version_info[:3]
    shown = f"Python {'.'.join(map(str, version))}"
    if version[:2] < OLDEST_PYTHON:
        return Finding(Level.ERROR, shown, "older than 3.11", "install Python 3.12")
    if version[:2] not in _WHEEL_PYTHONS:
        return Finding(
            Level.OK, f"{shown}; there is no Redis wheel for it, so that redis-server has to be on PATH"
        )
    return Finding(Level.OK, shown)


def _git() -> Finding:
    said = _said("git", "--version")
    if said is None:
        return Finding(Level.ERROR, "git", "not on PATH", "apt-get install git   (or: brew install git)")
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GIT:
        return Finding(
            Level.ERROR,
            said,
            "results are merged with git merge-tree --write-tree",
            "install git 2.38 or later",
        )
    return Finding(Level.OK, said)


def sandbox(settings: Settings) -> Finding:
    """What agents' commands would run in here, by the probe that workers make."""
    bad = Level.ERROR if settings.strict_sandbox else Level.WARNING
    said = _said("bwrap", "--version")
    if said is None:
        return Finding(
            bad,
            "bubblewrap",
            "not on PATH: agents' commands run with your own rights",
            "apt-get install bubblewrap (Linux only)",
        )
    with tempfile.TemporaryDirectory(prefix="orchestrator-doctor-") as folder:
        found = Sandbox(
            Path(folder), path=os.environ.get("PATH", os.defpath), read_only=settings.sandbox_read_only
        )
    if found.warning is None:
        return Finding(Level.OK, said)
    if found.kind == "bubblewrap":
        return Finding(Level.WARNING, said, found.warning, "install bubblewrap 0.8 or later")
    return Finding(
        bad,
        f"{said}, which can't make a sandbox",
        found.warning,
        "allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1 "
        "or, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns=0",
    )


def _postgres(settings: Settings) -> Finding:
    def look() -> str:
        if settings.database_url:
            return f"Postgres at {probes.reach('postgres', settings.database_url.get_secret_value())}"
        return f"Postgres {postgres_programs.installed().major}, embedded"

    return _available(look)


def _redis(settings: Settings) -> Finding:
    def look() -> str:
        if settings.broker_url:
            return f"broker at {probes.reach('broker', settings.broker_url.get_secret_value())}"
        program = redis.program()
        return f"Redis {redis.server_version(program)}, {program}"

    return _available(look)


def _ports(settings: Settings) -> Iterator[Finding]:
    for name, port in (("API", settings.api_port), ("Flower", 5555)):
        if ports.is_free(port):
            yield Finding(Level.OK, f"port {port} for {name}")
        else:
            yield Finding(
                Level.WARNING,
                f"port {port} for {name}",
                "taken",
                "nothing: `up` takes the next free one and says so",
            )


def _disk(data_dir: Path) -> Finding:
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    shown = f"{free / 1024**3:.1f} GiB free for {data_dir}"
    if not os.access(existing, os.W_OK):
        return Finding(Level.ERROR, f"{existing}", "can't be written to", "choose another folder: --data DIR")
    if free >= _ENOUGH_DISK_BYTES:
        return Finding(Level.OK, shown)
    level = Level.WARNING if free >= _LEAST_DISK_BYTES else Level.ERROR
    return Finding(
        level, shown, "checkouts and logs need room", "make room, or choose another disk: --data DIR"
    )


def _key(settings: Settings) -> Finding:
    if settings.anthropic_api_key:
        return Finding(Level.OK, "ANTHROPIC_API_KEY is set")
    if settings.anthropic_api_key_command:
        return Finding(Level.OK, "a command gives the gateway its key for anthropic")
    return Finding(
        Level.WARNING,
        "ANTHROPIC_API_KEY",
        "not set: only recorded demos will run",
        "export ANTHROPIC_API_KEY=…, then: orchestrator restart gateway",
    )


def _entry_points(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Another product has a command of that name; whichever comes first on PATH is run."""
    ours = Path(sys.executable).parent
    for name in ("orchestrator", "task-master"):
        found = shutil.which(name, path=environment.get("PATH"))
        if found and (ours / name).exists() and Path(found).resolve() != (ours / name).resolve():
            yield Finding(
                Level.WARNING,
                f"{name} on PATH is {found}",
                "not the one of this installation",
                f"use {ours / name}, or put {ours} first on PATH",
            )


_RABBITMQCTL: Final = ("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")
"""Debian's wrapper on PATH insists on its own user."""
_ASK_RABBITMQ: Final = (
    "{application:get_env(rabbit, consumer_timeout),"
    " [element(7, L) || L <- rabbit_networking:active_listeners(), element(4, L) =/= clustering]}."
)
_EPMD_PORT: Final = 4369
_LONGEST_STEP: Final = timedelta(days=1)


def rabbitmq(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """A channel whose message is unacknowledged for longer is closed, and its worker stops consuming."""
    url = urlsplit(settings.broker_url.get_secret_value() if settings.broker_url else "")
    if url.scheme not in {"amqp", "amqps"}:
        return
    what, fix = "RabbitMQ's consumer_timeout", "in rabbitmq.conf: consumer_timeout = 86400000"
    timeout = _consumer_timeout(url, environment)
    if timeout is None:
        why = "can't be asked from here: by default a message may be unacknowledged for 30 minutes only"
        yield Finding(Level.WARNING, what, f"{why}, and a step may take longer", fix)
    elif timeout < _LONGEST_STEP:
        why = f"a message may be unacknowledged for {timeout.total_seconds() / 60:g} minutes only"
        yield Finding(Level.WARNING, what, f"{why}, and a step may take longer", fix)
    else:
        yield Finding(Level.OK, f"{what} is {timeout}" if timeout < timedelta.max else f"{what} is off")


def _consumer_timeout(url: SplitResult, environment: Mapping[str, str]) -> timedelta | None:
    """The node itself says it, by its own program on its own machine; None: it isn't here."""
    if url.hostname not in {"127.0.0.1", "::1", "localhost"} or not _has_port_mapper(environment):
        return None
    # An Erlang that fails leaves a dump of its memory in whatever folder it was called from.
    environment = {**environment, "ERL_CRASH_DUMP": os.devnull}
    for program in _RABBITMQCTL:
        done = _run(program, "eval", _ASK_RABBITMQ, environment=environment)
        found = re.search(r"\{(undefined|\{ok,\s*(\w+)\}),\s*\[([\d,\s]*)\]\}", done.stdout if done else "")
        if found is None or str(url.port or 5672) not in re.findall(r"\d+", found[3]):
            continue
        if found[2] is None or not found[2].isdigit():
            return timedelta.max
        return timedelta(milliseconds=int(found[2]))
    return None


def _has_port_mapper(environment: Mapping[str, str]) -> bool:
    """Whether Erlang's epmd runs, without which no node is found: the program would start and leave one."""
    try:
        port = int(environment.get("ERL_EPMD_PORT", _EPMD_PORT))
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _available(look: Callable[[], str]) -> Finding:
    try:
        return Finding(Level.OK, look())
    except OrchestratorError as error:
        return Finding(Level.ERROR, error.code, error.message, error.hint)


def _said(*command: str) -> str | None:
    done = _run(*command)
    return done.stdout.strip() if done and done.returncode == 0 else None


def _run(
    *command: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """None when there is no such program."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None
