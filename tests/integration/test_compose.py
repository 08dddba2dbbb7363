"""Each service's own command, as docker/compose.yaml has it, against real servers of the test's.

What a container would change is put in by hand: names of hosts, ports, and the two folders.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import yaml

from orchestrator.local import ports
from tests.servers import PostgresServer, RedisServer

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
DATA = ROOT / "orchestrator" / "data"
LANES = ("critical", "high", "medium", "low")
WORKERS = tuple(f"worker-{lane}" for lane in (*LANES, "system"))
OURS = ("migrate", "api", "gateway", *WORKERS, "beat", "flower")
PATIENCE_SECONDS = 90
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^${}]*))?\}")


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    return found


def test_mirrors_outlive_the_containers_of_the_workers_that_use_them() -> None:
    composed = yaml.safe_load(COMPOSE.read_text("utf-8"))
    image = (ROOT / "docker" / "Dockerfile").read_text("utf-8")

    for lane in LANES:
        assert "mirrors:/data/mirrors" in composed["services"][f"worker-{lane}"]["volumes"]
    assert "mirrors" in composed["volumes"]
    assert re.search(r"install .*--owner orchestrator.* /data/mirrors", image), (
        "a volume is owned as its folder"
    )


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """As Compose does it, the innermost variable first. Raises KeyError for one that must be set."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if given := environment.get(name):
            return given
        if kind == "?":
            raise KeyError(name)
        return rest or ""

    while VARIABLE.search(text):
        text = VARIABLE.sub(value, text)
    return text.replace("$$", "$")


@dataclass
class Composed:
    """The services of ours as processes."""

    folder: Path
    database_url: str
    redis_url: str
    api_port: int = field(default_factory=lambda: ports.choose(0))
    flower_port: int = field(default_factory=lambda: ports.choose(0))
    gateway_port: int = field(default_factory=lambda: ports.choose(0))
    api_key: str = field(default_factory=lambda: secrets.token_hex(24))
    flower_password: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def given(self) -> dict[str, str]:
        """What docker/.env would say."""
        return {
            "POSTGRES_PASSWORD": urlsplit(self.database_url).password or "",
            "REDIS_PASSWORD": urlsplit(self.redis_url).password or "",
            "ORCHESTRATOR_MESSAGE_SECRET": "a secret of the test's",
            "ORCHESTRATOR_API_KEY": self.api_key,
            "FLOWER_PASSWORD": self.flower_password,
            "ORCHESTRATOR_STRICT_SANDBOX": "true" if shutil.which("bwrap") else "false",
        }

    def placed(self, text: str) -> str:
        """With this machine's addresses in place of the containers'."""
        database, redis = urlsplit(self.database_url), urlsplit(self.redis_url)
        return (
            text.replace("@postgres:5432/orchestrator", f"@127.0.0.1:{database.port}{database.path}")
            .replace("@redis:6379/0", f"@127.0.0.1:{redis.port}{redis.path}")
            .replace("file:///artifacts", f"file://{self.folder / 'artifacts'}")
            .replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - out with it
            .replace("//gateway:", "//127.0.0.1:")
            .replace("8000", str(self.api_port))
            .replace("8100", str(self.gateway_port))
            .replace("5555", str(self.flower_port))
        )

    def environment(self, name: str) -> dict[str, str]:
        declared = services()[name]["environment"]
        found = {key: self.placed(interpolated(str(value), self.given)) for key, value in declared.items()}
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **kept,
            "PATH": path,
            "HOSTNAME": os.uname().nodename,
            "PYTHONUNBUFFERED": "1",
            "ORCHESTRATOR_DATA_DIR": str(self.folder / name),
            **found,
        }

    def argv(self, name: str) -> list[str]:
        words = [self.placed(interpolated(str(word), self.given)) for word in services()[name]["command"]]
        return [sys.executable, "-P", "-m", "orchestrator", *words]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as output:
            return subprocess.Popen(
                self.argv(name),
                env=self.environment(name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def is_healthy(self, name: str) -> bool:
        """The service's own health check."""
        kind, *words = services()[name]["healthcheck"]["test"]
        words = [self.placed(interpolated(word, self.given)) for word in words]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        done = subprocess.run(
            command, env=self.environment(name), cwd=self.folder, capture_output=True, check=False, timeout=60
        )
        return done.returncode == 0

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = Request(
            f"http://127.0.0.1:{self.api_port}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())


def until(true: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def composed(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, redis_server: RedisServer
) -> Iterator[Composed]:
    stack = Composed(tmp_path_factory.mktemp("composed"), postgres_server.fresh(), redis_server.fresh())
    with ExitStack() as started:
        started.callback(postgres_server.drop, stack.database_url)
        migrated = stack.start("migrate")
        assert migrated.wait(PATIENCE_SECONDS) == 0, stack.log("migrate")
        processes = [stack.start(name) for name in OURS[1:]]
        started.callback(_end, processes)
        yield stack


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """All are asked to end; whoever doesn't is killed, and fails the test."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    try:
        for process in processes:
            process.wait(PATIENCE_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE_SECONDS)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The bundled sample, as a git repository."""
    folder = tmp_path / "repository"
    shutil.copytree(DATA / "samples" / "textstats", folder, ignore=shutil.ignore_patterns("__pycache__"))
    who = ("-c", "user.name=sample", "-c", "user.email=sample@example.invalid")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), (*who, "commit", "-q", "-m", "The sample")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.mark.timeout(240)
def test_every_service_becomes_ready_and_a_task_of_each_lane_goes_through(
    composed: Composed, repository: Path
) -> None:
    until(lambda: composed.is_healthy("api"), lambda: composed.log("api"))
    until(lambda: composed.is_healthy("flower"), lambda: composed.log("flower"))
    until(lambda: composed.is_healthy("gateway"), lambda: composed.log("gateway"))
    until(lambda: "beat: Starting" in composed.log("beat"), lambda: composed.log("beat"))
    for name in WORKERS:
        until(lambda name=name: " ready." in composed.log(name), lambda name=name: composed.log(name))
    plan = json.loads((DATA / "recordings" / "fix-bug" / "plan.json").read_text())
    created = {
        lane: composed.call(
            "POST",
            "/api/v1/tasks",
            {
                "description": plan["description"],
                "priority": lane,
                "repository": {"path": str(repository)},
                "agent": {"type": "replay"},
                "steps": plan["steps"],
            },
        )["id"]
        for lane in LANES
    }
    ended = {lane: ended_task(composed, task_id) for lane, task_id in created.items()}
    assert {lane: task["status"] for lane, task in ended.items()} == dict.fromkeys(LANES, "completed"), ended
    for lane, task in ended.items():
        assert {step["agent_id"].partition("@")[0] for step in task["steps"]} == {lane}


def ended_task(composed: Composed, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(composed.call("GET", f"/api/v1/tasks/{task_id}"))
        return found["status"] in {"completed", "failed", "cancelled"}

    until(ended, lambda: json.dumps(found, indent=1))
    return found


def test_a_worker_is_healthy_while_it_answers_and_flower_shows_nothing_without_its_password(
    composed: Composed,
) -> None:
    until(lambda: " ready." in composed.log("worker-high"), lambda: composed.log("worker-high"))
    assert composed.is_healthy("worker-high")
    until(lambda: composed.is_healthy("flower"), lambda: composed.log("flower"))
    with pytest.raises(HTTPError) as refused:
        urlopen(f"http://127.0.0.1:{composed.flower_port}/flower/api/workers", timeout=10)
    with refused.value as answer:
        assert answer.code == 401


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "ORCHESTRATOR_MESSAGE_SECRET",
                                     "ORCHESTRATOR_API_KEY", "FLOWER_PASSWORD"])  # fmt: skip
def test_no_secret_has_a_default(missing: str) -> None:
    everything = dict.fromkeys(
        ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "ORCHESTRATOR_MESSAGE_SECRET", "ORCHESTRATOR_API_KEY",
         "FLOWER_PASSWORD"], "x"
    )  # fmt: skip
    text = COMPOSE.read_text("utf-8")
    interpolated(text, everything)
    with pytest.raises(KeyError, match=missing):
        interpolated(text, {**everything, missing: ""})


def test_every_process_of_ours_is_a_service_and_every_lane_has_its_worker() -> None:
    found = services()
    assert set(found) == {"postgres", "redis", "rabbitmq", *OURS}
    served = {found[name]["command"][2] for name in OURS if name.startswith("worker-")}
    assert served == {*LANES, "system"}
    assert all("profiles" not in found[name] for name in found if name != "rabbitmq")
    assert all(
        port.startswith("127.0.0.1:") for service in found.values() for port in service.get("ports", ())
    )


def test_the_gateway_alone_gets_providers_keys_and_every_worker_knows_it() -> None:
    holders = {
        name
        for name, service in services().items()
        if any("API_KEY" in key and "ORCHESTRATOR" not in key for key in service.get("environment", ()))
    }
    assert holders == {"gateway"}
    assert all("ORCHESTRATOR_GATEWAY_URL" in services()[name]["environment"] for name in WORKERS)
    assert "ports" not in services()["gateway"], "no other machine's business"


def test_rabbitmq_is_told_to_wait_longer_than_any_step_runs() -> None:
    text = (ROOT / "docker" / "rabbitmq.conf").read_text("utf-8")
    found = re.search(r"^consumer_timeout = (\d+)$", text, re.MULTILINE)
    assert found
    assert int(found[1]) >= 24 * 3600 * 1000
