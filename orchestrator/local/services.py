"""Our own processes of an installation, as data: how each starts, shows that it is ready, and stops."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.local import probes
from orchestrator.local.service import Service, StopOrder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LANES: Final = ("critical", "high", "medium", "low")
SYSTEM: Final = "system"
PROGRAM: Final = (sys.executable, "-P", "-m", "orchestrator")
"""-P: a file in the current folder that is called celery.py or so must not be imported."""

PROVIDER_SETTINGS: Final = tuple(
    f"{prefix}{provider}_{setting}"
    for provider in ("ANTHROPIC", "OPENAI")
    for setting in ("API_KEY", "API_KEY_COMMAND", "BASE_URL")
    for prefix in ("", "ORCHESTRATOR_")
)
"""What the gateway alone gets: no other process of ours calls a provider."""
_KEYS: Final = frozenset({*PROVIDER_SETTINGS, "ANTHROPIC_AUTH_TOKEN"})
_DRAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Processes:
    """Makes services that share a program, an environment and a working folder."""

    environment: Mapping[str, str]
    folder: Path
    program: tuple[str, ...] = PROGRAM

    def api(self, host: str, port: int) -> Service:
        return Service(
            name="api",
            kind="api",
            argv=(*self.program, "api", "--host", host, "--port", str(port)),
            ready=probes.answers(port, "/readyz", host=host),
            stop_order=StopOrder.API,
            env=self.environment,
            folder=self.folder,
            port=port,
            hides=_KEYS,
        )

    def gateway(self, host: str, port: int) -> Service:
        """Asked to stop, it gives the calls under way a few seconds to end."""
        return Service(
            name="gateway",
            kind="gateway",
            argv=(*self.program, "gateway", "--host", host, "--port", str(port)),
            ready=probes.answers(port, "/readyz", host=probes.reachable(host)),
            stop_order=StopOrder.GATEWAY,
            env=self.environment,
            folder=self.folder,
            port=port,
        )

    def worker(self, name: str, queues: tuple[str, ...], concurrency: int) -> Service:
        """Asked to stop, it gives its steps back at the next turn and ends; that may take a while."""
        return Service(
            name=name,
            kind="worker",
            argv=(
                *(*self.program, "worker", "--queues", ",".join(queues)),
                *("--concurrency", str(concurrency), "--name", name),
            ),
            ready=probes.says(r"\bready\b"),
            stop_order=StopOrder.WORKER,
            env=self.environment,
            folder=self.folder,
            hides=_KEYS,
            stop_seconds=_DRAIN_SECONDS,
        )

    def beat(self) -> Service:
        return Service(
            name="beat",
            kind="beat",
            argv=(*self.program, "beat"),
            ready=probes.says(r"beat: Starting"),
            stop_order=StopOrder.BEAT,
            env=self.environment,
            folder=self.folder,
            hides=_KEYS,
        )

    def flower(self, port: int, user: str, password: str) -> Service:
        """The password comes by the environment, which only its owner can read."""
        return Service(
            name="flower",
            kind="flower",
            argv=(*self.program, "flower", "--port", str(port)),
            ready=probes.answers(port, "/flower/healthcheck"),
            stop_order=StopOrder.FLOWER,
            env={**self.environment, "FLOWER_BASIC_AUTH": f"{user}:{password}"},
            folder=self.folder,
            hides=_KEYS,
            port=port,
        )

    def workers(self, count: int, concurrency: int) -> tuple[Service, ...]:
        """`count` for tasks, and the one that always runs for the system's own work."""
        agents = (self.worker(f"agent-{number}", LANES, concurrency) for number in range(1, count + 1))
        return (*agents, self.worker(SYSTEM, (SYSTEM,), 1))
