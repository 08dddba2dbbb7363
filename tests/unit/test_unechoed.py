"""What is typed while a picture is drawn, on a real terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

PROGRAM = """
import fcntl, os, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its session's terminal, as a shell's is
from orchestrator.cli.unechoed import unechoed
woken, wakes = os.pipe()
os.set_blocking(wakes, False)
signal.set_wakeup_fd(wakes)
signal.signal(signal.SIGUSR1, lambda *_: None)
try:
    with unechoed():
        print("drawn", flush=True)
        os.read(woken, 1)
finally:
    print("unwound", flush=True)
print("asks", flush=True)
print("heard " + input(), flush=True)
"""


@dataclass
class Terminal:
    """`screen` is where a person looks and types; `shown` is what is on it."""

    screen: int
    keys: int
    program: subprocess.Popen[bytes]
    shown: bytes = b""

    def until(self, words: bytes) -> None:
        while words not in self.shown:
            self.shown += os.read(self.screen, 4096)

    def type(self, text: bytes) -> None:
        os.write(self.screen, text)

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.keys)[3] & termios.ECHO)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    screen, keys = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=keys, stdout=keys, stderr=keys, start_new_session=True
    ) as program:
        yield Terminal(screen, keys, program)
        program.kill()
    os.close(screen)
    os.close(keys)


def test_keys_are_not_shown_and_answer_no_later_question(terminal: Terminal) -> None:
    terminal.until(b"drawn")
    assert not terminal.echoes
    terminal.type(b"too early\n")
    terminal.program.send_signal(signal.SIGUSR1)
    terminal.until(b"asks")
    assert terminal.echoes
    terminal.type(b"now\n")
    terminal.until(b"heard now")
    assert terminal.program.wait() == 0
    assert b"early" not in terminal.shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_program_leaves_the_terminal_as_it_was(terminal: Terminal, number: int) -> None:
    terminal.until(b"drawn")
    assert not terminal.echoes
    terminal.program.send_signal(number)
    assert terminal.program.wait() == -number
    assert terminal.echoes
    terminal.until(b"drawn")


def test_without_a_terminal_nothing_is_done() -> None:
    script = PROGRAM.replace("fcntl.ioctl(0, termios.TIOCSCTTY, 0)", "").replace("os.read(woken, 1)", "")
    done = subprocess.run(
        [sys.executable, "-c", script], input=b"piped\n", capture_output=True, check=True, timeout=60
    )
    assert done.stdout.split(b"\n") == [b"drawn", b"unwound", b"asks", b"heard piped", b""]
