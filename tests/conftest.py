"""The servers that tests share. A test asks for a fresh database or Redis and never sees another test's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers import PostgresServer, RedisServer, serve_postgres, serve_redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with serve_postgres(tmp_path_factory.mktemp("postgres-server")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with serve_redis(tmp_path_factory.mktemp("redis-server")) as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database, gone after the test."""
    url = postgres_server.fresh()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty logical Redis database."""
    return redis_server.fresh()
