from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ledger import Ledger, migrate, opened
from tests.integration.rabbitmq import Node, serve_rabbitmq
from tests.integration.stack import Stack
from tests.servers import PostgresServer, RedisServer


@pytest.fixture(scope="session")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A private node; what a test leaves in its queues, the next one finds."""
    if shutil.which("rabbitmq-server") is None and not Path("/usr/sbin/rabbitmq-server").exists():
        pytest.skip(
            "NOT TESTED ON RABBITMQ: there is no rabbitmq-server on PATH (apt-get install rabbitmq-server)"
        )
    with serve_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_node: Node) -> str:
    return rabbitmq_node.url


@pytest.fixture
def migrated_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database of its own with the current schema and no rows."""
    url = postgres_server.fresh(postgres_server.template("migrated", migrate))
    yield url
    postgres_server.drop(url)


@pytest.fixture(scope="module")
def module_ledger(postgres_server: PostgresServer) -> Iterator[Ledger]:
    url = postgres_server.fresh(postgres_server.template("migrated", migrate))
    found = opened(url)
    yield found
    found.engine.dispose()
    postgres_server.drop(url)


@pytest.fixture
def ledger(module_ledger: Ledger) -> Iterator[Ledger]:
    """A migrated database without rows; the module's tests have it one after the other."""
    yield module_ledger
    module_ledger.clear()


@pytest.fixture
def stack(migrated_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """An installation of its own, without a worker."""
    found = Stack(migrated_url, redis_url, tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared_stack(
    postgres_server: PostgresServer, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One installation for a whole module, whose tests keep to tasks of their own."""
    url = postgres_server.fresh(postgres_server.template("migrated", migrate))
    found = Stack(url, redis_server.fresh(), tmp_path_factory.mktemp("stack"))
    yield found
    found.close()
    postgres_server.drop(url)
