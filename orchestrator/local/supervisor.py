"""Keeps services running: starts, probes, restarts with back-off, bounds their logs, stops them in order.

Every child has its own session, so that Ctrl-C in the terminal reaches the supervisor alone. A watcher
process ends them all when the supervisor itself is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import Unavailable, Unknown
from orchestrator.local import processes, roster
from orchestrator.local.roster import Entry, Roster
from orchestrator.local.service import Service, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from orchestrator.local.processes import Identity

LOG_BYTES: Final = 5 * 1024 * 1024
"""A log is moved aside beyond this, over the one moved aside before."""

_POLL_SECONDS: Final = 0.02
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
_ABORT_SECONDS: Final = 3.0
_TAIL_LINES: Final = 5


@dataclass(slots=True)
class _Run:
    """The present process of a service. `retry_at` is monotonic time, set while there is none."""

    service: Service
    process: subprocess.Popen[bytes]
    identity: Identity | None
    log_from: int
    began_at: float
    since: float
    ready: bool = False
    restarts: int = 0
    failures: int = 0
    retry_at: float | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Supervisor:
    """The parent of all services of one folder, in which it keeps the roster and `logs/`.

    `say` is told of crashes; `wait(seconds)` passes the time between two looks and may raise to give up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] = print,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stack: Final = secrets.token_hex(16)
        self._folder = folder
        self._say = say
        self._wait = wait
        self._runs: dict[str, _Run] = {}
        self._stopping = False
        itself = processes.identify(os.getpid())
        if itself is None:
            raise AssertionError(os.getpid())
        before = roster.read(folder)
        self._roster = Roster(
            stack=self.stack,
            supervisor=itself,
            ports=before.ports if before else {},
        )
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)
        self._record()
        self._watcher = self._watch()

    @property
    def ports(self) -> Mapping[str, int]:
        """The port that each service had last, those of an earlier run included."""
        return self._roster.ports

    def log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"

    def publish(self, urls: Mapping[str, str]) -> None:
        """Lets `ps` and other commands find the stack. No secrets."""
        self._roster = replace(self._roster, urls=urls)
        self._record()

    def discard(self, *folders: Path) -> None:
        """They end with the stack, even if the supervisor can't delete them itself."""
        self._roster = replace(self._roster, temporary=tuple(str(folder) for folder in folders))
        self._record()

    def launch(self, service: Service) -> None:
        """Starts it and returns at once."""
        self._runs[service.name] = self._spawn(service, MappingProxyType({}))
        if service.port is not None:
            ports = {**self._roster.ports, service.name: service.port}
            self._roster = replace(self._roster, ports=ports)
        self._record()

    def await_ready(self, name: str) -> float:
        """Says after how many seconds it was ready. Raises Unavailable, with the log's end, when it isn't."""
        run = self._runs[name]
        while not self._is_ready(run):
            over = time.monotonic() - run.began_at > run.service.ready_seconds
            if over or run.process.poll() is not None:
                raise self._not_ready(run, over=over)
            self._wait(_POLL_SECONDS)
        self._record()
        return time.monotonic() - run.began_at

    def forget(self, name: str) -> None:
        """Ends it for good, so that it can be launched otherwise."""
        run = self._runs.pop(name)
        self._end([run], orderly=False)
        self._record()

    def look(self) -> None:
        """One round: what has crashed is started again when its time has come; logs are kept short."""
        before = [self._status(run) for run in self._runs.values()]
        for run in list(self._runs.values()):
            if run.retry_at is not None:
                if time.monotonic() >= run.retry_at:
                    self._again(run)
            elif run.process.poll() is not None:
                self._crashed(run)
            elif not run.ready:
                self._is_ready(run)
            _shorten(self.log(run.service.name))
        if self._watcher.poll() is not None:
            self._release_watcher()
            self._watcher = self._watch()
        if before != [self._status(run) for run in self._runs.values()]:
            self._record()

    def restart(self, name_or_kind: str, extra: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
        """Stops and starts a service, or all of a kind, with `extra` in its environment from now on."""
        chosen = [run for run in self._runs.values() if name_or_kind in (run.service.name, run.service.kind)]
        if not chosen:
            raise Unknown(
                "unknown-service",
                f"There is no service {name_or_kind!r} here.",
                f"One of: {', '.join(sorted(self._runs))}",
            )
        self._end(chosen, orderly=True)
        for run in chosen:
            new = self._spawn(run.service, {**run.extra, **extra})
            new.restarts = run.restarts + 1
            self._runs[run.service.name] = new
        self._record()
        return tuple(run.service.name for run in chosen)

    def stop(self) -> None:
        """The orderly end, in stopping order. When `wait` raises, `abort` has to follow."""
        self._stopping = True
        self._record()
        for wave in self._waves():
            self._end(wave, orderly=True)
        self._finish()

    def abort(self) -> None:
        """The end, now."""
        self._stopping = True
        self._wait = time.sleep
        for wave in self._waves():
            self._end(wave, orderly=False)
        self._finish()

    def _waves(self) -> list[list[_Run]]:
        def order(run: _Run) -> int:
            return run.service.stop_order

        return [list(wave) for _, wave in groupby(sorted(self._runs.values(), key=order), order)]

    def _finish(self) -> None:
        strays = processes.marked(self.stack)
        processes.end(strays, signal.SIGKILL, _ABORT_SECONDS)
        self._runs.clear()
        self._record()
        self._release_watcher()

    def _release_watcher(self) -> None:
        """It ends when its pipe does; by now there is nothing left for it to end."""
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        self._watcher.wait()

    def _end(self, runs: list[_Run], *, orderly: bool) -> None:
        """One after the other is asked at once, and waited for together; whoever stays is killed."""
        living = [run for run in runs if run.process.poll() is None]
        for run in living:
            run.process.send_signal(run.service.stop if orderly else run.service.abort)
        grace = max((run.service.stop_seconds for run in living), default=0.0) if orderly else _ABORT_SECONDS
        deadline = time.monotonic() + grace
        while living and time.monotonic() < deadline:
            self._wait(_POLL_SECONDS)
            living = [run for run in living if run.process.poll() is None]
        for run in living:
            run.process.kill()
        for run in runs:
            run.process.wait()
            processes.end(processes.session(run.process.pid), signal.SIGKILL, _ABORT_SECONDS)

    def _spawn(self, service: Service, extra: Mapping[str, str]) -> _Run:
        log = self.log(service.name)
        given = {**(os.environ if service.inherits else {}), **service.env, **extra}
        environment = {name: value for name, value in given.items() if name not in service.hides}
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as output:
            log_from = output.tell()
            process = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=service.folder or self._folder,
                env={**environment, processes.MARK: self.stack},
                start_new_session=True,
                umask=-1 if service.inherits else 0o077,
                user=service.account.uid if service.account else None,
                group=service.account.gid if service.account else None,
                extra_groups=[] if service.account else None,
            )
        return _Run(
            service,
            process,
            processes.identify(process.pid),
            log_from,
            began_at=time.monotonic(),
            since=time.time(),
            extra=extra,
        )

    def _is_ready(self, run: _Run) -> bool:
        try:
            run.ready = run.service.ready(Started(run.process.pid, self.log(run.service.name), run.log_from))
        except OSError:
            run.ready = False
        return run.ready

    def _not_ready(self, run: _Run, *, over: bool) -> Unavailable:
        name = run.service.name
        what = f"is not ready after {run.service.ready_seconds:.0f} s" if over else "ended while it started"
        with self.log(name).open("rb") as log:
            log.seek(run.log_from)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()[-_TAIL_LINES:]
        said = "\n".join(f"  {name}: {line}" for line in lines)
        return Unavailable(
            f"{run.service.kind}-not-started",
            f"{name} {what}{f' (exit {run.process.returncode})' if not over else ''}.\n{said}",
            f"All of its log: {self.log(name)}",
        )

    def _crashed(self, run: _Run) -> None:
        processes.end(processes.session(run.process.pid), signal.SIGKILL, _ABORT_SECONDS)
        ran = time.monotonic() - run.began_at
        run.failures = 1 if ran >= _STEADY_SECONDS else run.failures + 1
        delay = min(_FIRST_DELAY_SECONDS * 2 ** (run.failures - 1), _LONGEST_DELAY_SECONDS)
        run.retry_at = time.monotonic() + delay
        run.ready = False
        how = _ending(run.process.returncode)
        self._say(
            f" ! {run.service.name} ended ({how}); again in {delay:g}s · log: {self.log(run.service.name)}"
        )

    def _again(self, run: _Run) -> None:
        new = self._spawn(run.service, run.extra)
        new.restarts = run.restarts + 1
        new.failures = run.failures
        self._runs[run.service.name] = new

    def _watch(self) -> subprocess.Popen[bytes]:
        """Itself without the mark, or it would end itself."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.local.watcher", str(self._folder), self.stack],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _status(self, run: _Run) -> str:
        if run.retry_at is not None:
            return "crashed"
        if self._stopping:
            return "stopping"
        return "running" if run.ready else "starting"

    def _record(self) -> None:
        entries = tuple(
            Entry(
                name=run.service.name,
                kind=run.service.kind,
                status=self._status(run),
                pid=run.identity.pid if run.identity and run.retry_at is None else None,
                started=run.identity.started if run.identity and run.retry_at is None else None,
                since=run.since,
                restarts=run.restarts,
                log=str(self.log(run.service.name)),
                port=run.service.port,
                stop=run.service.stop,
                stop_order=run.service.stop_order,
            )
            for run in self._runs.values()
        )
        self._roster = replace(self._roster, entries=entries)
        roster.write(self._folder, self._roster)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit {code}"


def _shorten(log: Path) -> None:
    """The writers append, so that after truncation they go on at the new end."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
