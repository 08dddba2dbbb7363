from __future__ import annotations

import socket

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
