"""The container image, by pytest-celery; needs a Docker engine and the extra `smoke`.

Its plugin replaces Celery's fixtures, so it is off by default: `pytest -p pytest_celery tests/smoke`.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = "orchestrator:smoke"


def _missing() -> str | None:
    """What keeps the image from being tried here."""
    if shutil.which("docker") is None:
        return "there is no docker on PATH"
    if subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode != 0:
        return "no Docker engine answers"
    return None


MISSING = _missing()
pytestmark = pytest.mark.skipif(
    MISSING is not None, reason=f"THE IMAGE WAS NOT TESTED: {MISSING} (see tests/integration/test_compose.py)"
)


@pytest.fixture(scope="session")
def image() -> str:
    """Built from this folder."""
    command = ["docker", "build", "--quiet", "--file", "docker/Dockerfile", "--tag", TAG, "."]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    return TAG


def in_container(image: str, *words: str, entrypoint: str = "orchestrator") -> str:
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", entrypoint, image, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1000)
def test_the_image_has_what_a_worker_needs_and_runs_as_nobody_special(image: str) -> None:
    assert in_container(image, "-u", entrypoint="id").strip() != "0"
    assert "orchestrator" in in_container(image, "--help")
    assert in_container(image, "--version", entrypoint="git").startswith("git version 2.")
    assert "bubblewrap" in in_container(image, "--version", entrypoint="bwrap")


def docker(*words: str, seconds: int = 120) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextmanager
def container(network: str, image: str, *words: str, **environment: str) -> Iterator[str]:
    """Its id, under which others on the network find it."""
    given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    name = f"smoke-{secrets.token_hex(6)}"
    docker("run", "--detach", "--name", name, "--network", network, *given, image, *words, seconds=600)
    try:
        yield name
    finally:
        print(docker("logs", name))
        docker("rm", "--force", "--volumes", name)


@pytest.mark.timeout(1500)
def test_a_worker_of_the_image_serves_its_queue(image: str, request: pytest.FixtureRequest) -> None:
    """pytest-celery's Redis, a Postgres, and a worker of ours in a container beside them."""
    if not request.config.pluginmanager.has_plugin("pytest_celery"):
        pytest.skip("THE WORKER OF THE IMAGE WAS NOT TESTED: run pytest -p pytest_celery tests/smoke")
    broker: Any = request.getfixturevalue("celery_redis_broker")
    network: str = request.getfixturevalue("default_pytest_celery_network").name
    password = secrets.token_hex(12)
    with container(network, "postgres:18", POSTGRES_PASSWORD=password) as postgres:
        for _ in range(60):
            words = ["docker", "exec", postgres, "pg_isready", "--host", "127.0.0.1"]
            if subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0:
                break
            time.sleep(0.5)
        settings = {
            "ORCHESTRATOR_DATABASE_URL": f"postgresql://postgres:{password}@{postgres}:5432/postgres",
            "ORCHESTRATOR_BROKER_URL": broker.config()["url"],
            "ORCHESTRATOR_MESSAGE_SECRET": "a secret of the test's",
        }
        given = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        assert "1 migration" in docker("run", "--rm", "--network", network, *given, image, "db", "upgrade")
        with container(network, image, "worker", "--queues", "high", **settings) as worker:
            ping = ("celery", "-A", "orchestrator.tasks", "inspect", "ping", "--timeout", "30")
            assert "pong" in docker("exec", worker, *ping)
