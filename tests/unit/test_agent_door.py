"""The one way out of an agent's sandbox, when nobody is behind it."""

from __future__ import annotations

import socket

from orchestrator.agents import refusals
from orchestrator.agents.door import Door
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke

CALL = b"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\ncontent-length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def _call(door: Door) -> bytes:
    with socket.create_connection(("127.0.0.1", door.port), timeout=30) as ours:
        try:
            ours.sendall(CALL)
            return ours.recv(4096)
        except ConnectionError:
            return b""


def _passed(door: Door, gateway: socket.socket) -> None:
    """One call that is answered."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=30) as ours:
        ours.sendall(CALL)
        theirs, _ = gateway.accept()
        with theirs:
            theirs.recv(4096)
            theirs.sendall(ANSWER)
            assert ours.recv(4096) == ANSWER


def test_a_gateway_that_is_away_is_told_from_an_agent_that_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        port = gateway.getsockname()[1]
        with Door(f"http://127.0.0.1:{port}", None) as door:
            _passed(door, gateway)
            assert door.refusal_since(0) is None
            gateway.close()
            assert _call(door) == b""
            found = door.refusal_since(0)
            assert found is not None
            verdict = refusals.verdict(found, fence=1)
            assert isinstance(verdict, Broke)
            assert (verdict.code, verdict.error) == ("gateway-unready", ErrorClass.NETWORK)
            assert door.calls == 1, "what nobody answered is no turn"
            with socket.create_server(("127.0.0.1", port)) as back:
                _passed(door, back)
            assert door.refusal_since(0) is None
