"""What other terminals do with a running stack: see it, stop it, restart a part, read its logs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import Conflict, OrchestratorError, Unavailable, Unknown
from orchestrator.local import memory, processes, roster
from orchestrator.local.services import PROVIDER_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from orchestrator.local.processes import Identity
    from orchestrator.local.roster import Entry, Roster

CARRIED: Final = (
    *PROVIDER_SETTINGS,
    "ORCHESTRATOR_CREDENTIALS",
    "ORCHESTRATOR_FETCH_HOSTS",
    "ORCHESTRATOR_MCP_SERVERS",
)
"""What `restart` takes along from its caller's environment; providers' keys for the gateway alone."""

_POLL_SECONDS: Final = 0.05
_REQUESTS: Final = "requests"


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of `ps`. `since` is Unix time; `pss_bytes` covers the process and all its descendants."""

    name: str
    status: str
    pid: int | None
    port: int | None
    since: float | None
    restarts: int
    log: str | None
    pss_bytes: int | None


def ps(data_dir: Path, *, measure: bool = False) -> tuple[Listed, ...]:
    """The supervisor (with its watcher) and its services; empty when nothing runs. Memory only when asked."""
    current = roster.read(data_dir)
    if current is None or not processes.alive(current.supervisor):
        return ()
    rows = [_listed(entry, measure=measure) for entry in current.entries]
    itself = current.supervisor.pid
    own = None
    if measure:
        own = memory.of_family(itself) - sum(row.pss_bytes or 0 for row in rows)
    return (Listed("supervisor", "running", itself, None, None, 0, None, own), *rows)


def down(data_dir: Path, *, seconds: float = 120.0) -> bool:
    """Asks the supervisor for an orderly stop and waits for it. False when nothing ran.

    What a killed supervisor had left is ended too. Raises Unavailable when it takes longer.
    """
    current = roster.read(data_dir)
    if current is None:
        return False
    if not processes.alive(current.supervisor):
        return roster.sweep(current) > 0
    processes.send(current.supervisor, signal.SIGTERM)
    if processes.await_end([current.supervisor], seconds):
        raise Unavailable(
            "still-stopping",
            f"The stack in {data_dir} is still stopping after {seconds:.0f} s: workers end their turn first.",
            f"Ask again to stop it at once: kill -INT {current.supervisor.pid}",
        )
    return True


def restart(
    data_dir: Path, name: str, environment: Mapping[str, str], *, seconds: float = 120.0
) -> tuple[str, ...]:
    """Restarts a service, or all of a kind, and says which. They get what `environment` has of `CARRIED`."""
    current = _running(data_dir)
    carried = {key: environment[key] for key in CARRIED if key in environment}
    request = data_dir / _REQUESTS / f"{secrets.token_hex(8)}.json"
    _private(request, {"service": name, "env": carried})
    processes.send(current.supervisor, signal.SIGUSR1)
    reply = request.with_suffix(".reply")
    deadline = time.monotonic() + seconds
    while not reply.exists():
        if time.monotonic() > deadline or not processes.alive(current.supervisor):
            request.unlink(missing_ok=True)
            raise Unavailable(
                "no-restart",
                f"{name} is not restarted after {seconds:.0f} s.",
                f"See what it does: orchestrator logs {name}",
            )
        time.sleep(_POLL_SECONDS)
    answer = json.loads(reply.read_text("utf-8"))
    reply.unlink()
    if "error" in answer:
        raise Unknown(**answer["error"])
    return tuple(answer["restarted"])


def logs(
    data_dir: Path, names: Sequence[str] = (), *, tail: int = 100, follow: bool = False
) -> Iterator[tuple[str, str]]:
    """Pairs of service and line, oldest first within a service; all services when none is named.

    A kind names all of it. With `follow` it ends when the supervisor has.
    """
    current = roster.read(data_dir)
    files = _log_files(data_dir, names)
    positions: dict[Path, int] = {}
    for path in files:
        content = path.read_bytes()
        positions[path] = len(content)
        for line in content.splitlines()[-tail:]:
            yield path.stem, line.decode("utf-8", "replace")
    while follow and current and processes.alive(current.supervisor):
        for path in files:
            yield from _fresh_lines(path, positions)
        time.sleep(_POLL_SECONDS)


class Requests:
    """The supervisor's end: what `restart` has left in the folder."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / _REQUESTS
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for stale in self._folder.iterdir():
            stale.unlink()

    def take(self) -> Iterator[tuple[Path, str, Mapping[str, str]]]:
        """File, service and environment of each request, which is deleted: it may hold a key."""
        for path in sorted(self._folder.glob("*.json")):
            asked = json.loads(path.read_text("utf-8"))
            path.unlink()
            yield path, asked["service"], asked["env"]

    def reply(self, request: Path, result: tuple[str, ...] | OrchestratorError) -> None:
        answer: Mapping[str, object] = (
            {"error": {"code": result.code, "message": result.message, "hint": result.hint}}
            if isinstance(result, OrchestratorError)
            else {"restarted": result}
        )
        _private(request.with_suffix(".reply"), answer)


def _running(data_dir: Path) -> Roster:
    current = roster.read(data_dir)
    if current is None or not processes.alive(current.supervisor):
        raise Conflict(
            "not-running",
            f"Nothing runs for {data_dir}.",
            "Start it: orchestrator up   (--data DIR for another)",
        )
    return current


def _listed(entry: Entry, *, measure: bool) -> Listed:
    identity: Identity | None = entry.identity
    here = identity is not None and processes.alive(identity)
    return Listed(
        name=entry.name,
        status=entry.status if here or entry.status == "crashed" else "gone",
        pid=entry.pid if here else None,
        port=entry.port,
        since=entry.since,
        restarts=entry.restarts,
        log=entry.log,
        pss_bytes=memory.of_family(identity.pid) if measure and identity and here else None,
    )


def _log_files(data_dir: Path, names: Sequence[str]) -> list[Path]:
    files = {path.stem: path for path in sorted((data_dir / "logs").glob("*.log"))}
    current = roster.read(data_dir)
    kinds = {entry.name: entry.kind for entry in current.entries} if current else {}
    chosen = [path for stem, path in files.items() if not names or {stem, kinds.get(stem)} & set(names)]
    if not chosen:
        raise Unknown(
            "unknown-service",
            f"There is no log of {', '.join(names) or 'anything'} in {data_dir / 'logs'}.",
            f"One of: {', '.join(files)}" if files else "Start it first: orchestrator up",
        )
    return chosen


def _fresh_lines(path: Path, positions: dict[Path, int]) -> Iterator[tuple[str, str]]:
    if path.stat().st_size < positions[path]:
        positions[path] = 0  # it was cut
    with path.open("rb") as log:
        log.seek(positions[path])
        content = log.read()
    whole = content[: content.rfind(b"\n") + 1]
    positions[path] += len(whole)
    for line in whole.splitlines():
        yield path.stem, line.decode("utf-8", "replace")


def _private(path: Path, content: Mapping[str, object]) -> None:
    beside = path.with_suffix(".partial")
    with os.fdopen(
        os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump(content, file)
    beside.replace(path)
