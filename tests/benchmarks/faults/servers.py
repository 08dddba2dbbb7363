"""Redis and Postgres: emptied, killed, hung, restarted, their connections ended."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

from sqlalchemy import text

from orchestrator.local import processes
from tests.benchmarks.faults.scene import Kinds, Scene


@dataclass
class ServerFaults:
    scene: Scene

    @property
    def kinds(self) -> Kinds:
        return {
            "flushall": (3, self.flushall),
            "redis_lost": (1, self.redis_lost),
            "redis_hung": (2, self.redis_hung),
            "redis_clients_killed": (2, self.redis_clients_killed),
            "postgres_restart": (1, self.postgres_restart),
            "backends_terminated": (3, self.backends_terminated),
        }

    def flushall(self) -> bool:
        with self.scene.here.client() as client:
            client.flushall()
        return True

    def redis_lost(self) -> bool:
        self.scene.here.lose_redis()
        return True

    def redis_hung(self) -> bool:
        """It keeps its connections, takes new ones even, and answers nobody."""
        pid = self.scene.here.pid("redis")
        identity = processes.identify(pid)
        if identity is None or pid in self.scene.stopped:
            return False
        os.kill(pid, signal.SIGSTOP)
        self.scene.stopped.add(pid)

        def go_on() -> None:
            self.scene.stopped.discard(pid)
            if processes.alive(identity):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        self.scene.repairs.surely(self.scene.chance.uniform(1, 8), go_on)
        return True

    def redis_clients_killed(self) -> bool:
        with self.scene.here.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return True

    def postgres_restart(self) -> bool:
        self.scene.here.restart_postgres_at_once()
        return True

    def backends_terminated(self) -> bool:
        share = self.scene.chance.choice((0.2, 0.5, 1.0))
        with self.scene.wiring.engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < :share"
                ),
                {"share": share},
            )
        return True
