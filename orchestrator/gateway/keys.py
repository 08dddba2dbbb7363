"""What providers are shown: a key of the settings, or one that a command prints and that expires."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from typing import Final, Protocol

import structlog

from orchestrator.core.redaction import Redactor

log: Final = structlog.get_logger(__name__)
_COMMAND_SECONDS: Final = 30.0
_LONGEST_KEY: Final = 16_384
_FRUITLESS_SECONDS: Final = 10.0
"""So long a command that failed, or brought the refused key again, isn't run once more."""


class KeyUnavailable(Exception):
    """There is a command for the key, and it brought none. The message is for the caller."""


class Key(Protocol):
    """Shared by all calls to one provider."""

    async def current(self) -> str:
        """Raises KeyUnavailable."""

    async def renewed(self, refused: str) -> str | None:
        """Another one, now that the provider refused `refused`; None: there is no other."""


class FixedKey:
    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def current(self) -> str:
        return self._secret

    async def renewed(self, _refused: str) -> str | None:
        return None


class CommandKey:
    """Its command runs once at a time, however many calls wait for it; who comes meanwhile gets what it
    brings. It is run by a shell, as the gateway's user, and prints the key alone."""

    def __init__(self, command: str, redactor: Redactor) -> None:
        self._command = command
        self._redactor = redactor
        self._lock = asyncio.Lock()
        self._secret: str | None = None
        self._fruitless_until = 0.0

    async def current(self) -> str:
        async with self._lock:
            return self._secret or await self._fetch()

    async def renewed(self, refused: str) -> str | None:
        async with self._lock:
            if self._secret == refused:
                with contextlib.suppress(KeyUnavailable):
                    await self._fetch(refused)
            return None if self._secret == refused else self._secret

    async def _fetch(self, refused: str | None = None) -> str:
        loop = asyncio.get_running_loop()
        if loop.time() < self._fruitless_until:
            raise KeyUnavailable("The command for the provider's key failed a moment ago.")
        try:
            found = await asyncio.to_thread(_printed, self._command)
        except KeyUnavailable as unavailable:
            self._fruitless_until = loop.time() + _FRUITLESS_SECONDS
            log.warning("key_command_failed", reason=str(unavailable))
            raise
        if found == refused:
            self._fruitless_until = loop.time() + _FRUITLESS_SECONDS
        self._redactor.learn([found])
        self._secret = found
        return found


def _printed(command: str) -> str:
    """What it says on stderr goes where the gateway's own log goes. Raises KeyUnavailable."""
    with subprocess.Popen(  # noqa: S602 - the installation's own words, a shell's
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as running:
        late = threading.Timer(_COMMAND_SECONDS, _kill, (running,))
        late.start()
        try:
            assert running.stdout is not None  # noqa: S101 - a pipe, as was asked for
            printed = running.stdout.read(_LONGEST_KEY)  # to its end, in however many pieces it comes
            if len(printed) == _LONGEST_KEY:
                raise KeyUnavailable("The command for the provider's key printed more than a key.")
            status = running.wait()
        finally:
            late.cancel()
            _kill(running)
    if status != 0:
        raise KeyUnavailable(f"The command for the provider's key ended with exit status {status}.")
    found = printed.decode("latin-1").strip()
    if not found or not found.isascii() or not found.isprintable():
        raise KeyUnavailable("The command for the provider's key printed no key: one line, ASCII alone.")
    return found


def _kill(running: subprocess.Popen[bytes]) -> None:
    """With all that it started; one that has ended is left, since its number may be another's by now."""
    if running.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
