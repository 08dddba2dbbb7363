"""The servers that tests share. A test asks for a fresh database or Redis and never sees another test's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadFileScheduling

from orchestrator.cli.loading import loading
from tests.servers import PostgresServer, RedisServer, serve_postgres, serve_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRED = "ORCHESTRATOR_REQUIRE_AGENTS"
"""Set where the programs of all agents must be there, as in continuous integration."""
INSTALLER = "scripts/install-agents"


ONE_STACK = (
    "acceptance/test_canvas_and_flower.py",
    "acceptance/test_deaths.py",
    "acceptance/test_task_flow.py",
)
"""These files' tests have one stack, so one process takes them all; three would start three."""
LONGEST = (
    "integration/test_worker.py",
    "acceptance/test_readme_commands.py",
    "integration/test_agent_conformance.py",
    "integration/test_agents_worker.py",
    "integration/test_chaos_short.py",
    "integration/test_bench_short.py",
    "integration/test_agents_acp.py",
    *ONE_STACK,
    "integration/test_subtasks_worker.py",
    "integration/test_subtasks_engine.py",
    "integration/test_local_stack.py",
    "acceptance/test_demo.py",
    "acceptance/test_engine_wire.py",
    "integration/test_agents_worker_claude.py",
    "integration/test_worker_surroundings.py",
)
"""These files begin first, so that at the end no process is left alone with one of them."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    with loading():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return order.get("/".join(item.path.parts[-2:]), len(order))

    items.sort(key=place)


class _ByStack(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "one stack" if file.endswith(ONE_STACK) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _ByStack(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    return _required((yield))


def _required(report: Any) -> Any:
    """A test that would be skipped for want of an agent's program fails where it is required."""
    if report.outcome == "skipped" and os.environ.get(REQUIRED) and INSTALLER in str(report.longrepr):
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Such skips are said aloud at the end, whatever else is left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(one.longrepr[2]) for one in skipped if INSTALLER in str(one.longrepr)}
    for reason in sorted(reasons):
        terminalreporter.write_line(f"! {reason.removeprefix('Skipped: ')}", yellow=True)


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
