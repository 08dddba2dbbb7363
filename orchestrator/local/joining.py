"""How a further process on this machine joins a stack that runs: by the settings that the stack made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestrator.local import credentials, processes, redis, roster
from orchestrator.local.postgres import Cluster
from orchestrator.local.postgres_programs import installed

_SERVERS: Final = ("postgres", "redis")


def environment(data_dir: Path) -> dict[str, str]:
    """Settings by their environment's names; empty when no stack with servers of its own runs there."""
    current = roster.read(data_dir)
    if current is None or not processes.alive(current.supervisor):
        return {}
    if not all(name in current.ports for name in _SERVERS):
        return {}
    known = credentials.load_or_make(data_dir)
    database = Cluster(data_dir / "postgres", installed(), None, known.postgres_password)
    broker = redis.Server(redis.program(), data_dir / "redis", known.redis_password)
    url = broker.url(current.ports["redis"])
    found = {
        "ORCHESTRATOR_DATA_DIR": str(data_dir),
        "ORCHESTRATOR_DATABASE_URL": database.url(current.ports["postgres"]),
        "ORCHESTRATOR_BROKER_URL": url,
        "ORCHESTRATOR_RESULT_URL": url,
        "ORCHESTRATOR_MESSAGE_SECRET": known.message_secret,
        "ORCHESTRATOR_API_KEY": known.api_key,
    }
    for name in ("api", "gateway"):
        if name in current.urls:
            found[f"ORCHESTRATOR_{name.upper()}_URL"] = current.urls[name]
    return found
