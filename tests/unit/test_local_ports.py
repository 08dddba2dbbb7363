from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from orchestrator.core.errors import Unavailable
from orchestrator.local import ports


def test_a_busy_port_gives_way_to_a_later_one() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        busy = holder.getsockname()[1]
        assert not ports.is_free(busy)
        assert ports.choose(busy) > busy


def test_a_port_must_be_free_on_every_address() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", 0))
        holder.listen()
        busy = holder.getsockname()[1]
        assert ports.choose(busy, hosts=("127.0.0.1", "127.0.0.2")) > busy


def test_a_reserved_port_is_nobody_else_s_though_nobody_listens_there_yet() -> None:
    with ports.reserve(0) as mine:
        assert ports.is_free(mine.port)
        with ports.reserve(mine.port) as theirs:
            assert theirs.port > mine.port
        assert ports.choose(mine.port) > mine.port
        with socket.socket() as server:
            server.bind(("127.0.0.1", mine.port))
            server.listen()
    assert ports.choose(mine.port) == mine.port


def test_a_reservation_ends_with_the_process_that_made_it() -> None:
    program = (
        "import sys; from orchestrator.local import ports;"
        "held = ports.reserve(0); print(held.port, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        assert ports.choose(port) > port
        holder.kill()
    assert ports.choose(port) == port


def test_running_out_of_ports_says_what_to_do() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", 65535))
        except OSError:
            pytest.skip("somebody has the last port")
        holder.listen()
        with pytest.raises(Unavailable, match="no-free-port"):
            ports.choose(65535)
