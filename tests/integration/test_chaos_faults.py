"""The faults of `scripts/chaos` do what they say: else a run without violations would say nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.workspaces.cgroup import Groups
from tests.benchmarks.faults import machine, remotes
from tests.benchmarks.relay import Direction, Way
from tests.integration.repositories import commit, git

EATER = "import sys; print('began', flush=True); sys.stdin.readline(); bytearray(64 * 1024**2)"


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                threading.Thread(target=answer, args=(one,), daemon=True).start()

    def answer(one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            while data := one.recv(1000):
                one.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def way(echo: int) -> Iterator[Way]:
    made = Way(echo)
    yield made
    made.end()


def connected(way: Way) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", way.port), timeout=5)
    assert said(one, b"hello") == b"hello"
    return one


def said(one: socket.socket, text: bytes) -> bytes:
    one.sendall(text)
    return one.recv(1000)


def test_a_way_that_is_cut_resets_what_is_connected_and_takes_what_comes(way: Way) -> None:
    with connected(way) as one:
        way.cut()
        with pytest.raises(ConnectionResetError):
            one.recv(1000)
    connected(way).close()


def test_a_closed_way_resets_what_comes_until_it_is_open_again(way: Way) -> None:
    way.close()
    with (
        pytest.raises(ConnectionResetError),  # it may come before the connection is there to be read
        socket.create_connection(("127.0.0.1", way.port), timeout=5) as one,
    ):
        one.recv(1000)
    way.open()
    connected(way).close()


@pytest.mark.parametrize("directions", [tuple(Direction), (Direction.BACK,)])
def test_over_a_blocked_way_nothing_comes_back_until_it_is_open_again(
    way: Way, directions: tuple[Direction, ...]
) -> None:
    with connected(way) as one:
        way.block(directions)
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            said(one, b"anybody there?")
        way.open()
        one.settimeout(5)
        assert one.recv(1000) == b"anybody there?", "late, but whole"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")
def test_a_full_disk_takes_no_byte_more(tmp_path: Path) -> None:
    with machine.small_disk(tmp_path / "data") as mounted:
        assert mounted
        machine.fill(tmp_path / "data" / "ballast", 0)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "data" / "more").write_bytes(bytes(5000))
        (tmp_path / "data" / "ballast").unlink()
        (tmp_path / "data" / "more").write_bytes(bytes(5000))
    assert not os.path.ismount(tmp_path / "data")


def test_a_starving_process_is_killed_by_the_kernel_when_it_wants_more() -> None:
    groups = Groups.find()
    if groups is None:
        pytest.skip("no control groups here")
    with subprocess.Popen(
        [sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as eater:
        assert eater.stdout is not None
        assert eater.stdout.readline() == b"began\n"
        group = machine.starve(groups, eater.pid)
        with contextlib.suppress(BrokenPipeError):
            eater.communicate(b"go\n", timeout=20)
        group.kill()
        group.remove()
    assert eater.returncode == -signal.SIGKILL


def test_a_remote_hangs_refuses_and_is_itself_again(tmp_path: Path) -> None:
    at = remotes.remote(tmp_path)
    theirs = tmp_path / "theirs"
    push = ("push", "-q", str(at), "HEAD:refs/heads/agent/t")
    commit(theirs, {"more.txt": "more\n"})
    remotes.hang(at)
    with subprocess.Popen(["git", "-C", str(theirs), *push], stderr=subprocess.PIPE) as pushing:
        with pytest.raises(subprocess.TimeoutExpired):
            pushing.wait(0.5)
        remotes.answer(at)
        assert pushing.wait(20) == 0
    git(theirs, "commit", "-q", "--allow-empty", "-m", "even more")
    remotes.refuse(at)
    with pytest.raises(AssertionError, match="hidden ref"):
        git(theirs, *push)
    remotes.allow(at)
    git(theirs, *push)
    assert git(at, "rev-parse", "agent/t") == git(theirs, "rev-parse", "HEAD")
