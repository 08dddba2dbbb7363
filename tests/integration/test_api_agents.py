from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.db import agents, claims
from orchestrator.db.agents import Slot
from orchestrator.db.claims import Claimed
from orchestrator.db.sql import StepRef
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer


@pytest.fixture
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


def appear(door: Door, agent_id: str) -> None:
    slot = Slot("default", agent_id, agent_id.partition("@")[0], "here", 1, "boot", "0", ("high",), (), ())
    with door.wiring.engine.begin() as connection:
        agents.register(connection, slot)


def work(door: Door, agent_id: str) -> dict[str, Any]:
    task = door.create()
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    with door.wiring.engine.begin() as connection:
        claimed = claims.claim(
            connection, step, lease=timedelta(minutes=1), agent_id=agent_id, signature=None
        )
    assert isinstance(claimed, Claimed)
    return task


def test_agents_say_what_they_are_at(door: Door) -> None:
    appear(door, "agent-1@here/1")
    appear(door, "agent-2@here/1")
    task = work(door, "agent-1@here/1")

    listed = door.get("/agents")["data"]

    assert [
        (one["id"], one["status"], one["task_id"], one["step_key"], one["stalled"]) for one in listed
    ] == [
        ("agent-1@here/1", "busy", task["id"], "work", False),
        ("agent-2@here/1", "idle", None, None, False),
    ]


def test_alive_is_not_moving(door: Door) -> None:
    for number in (1, 2, 3):
        appear(door, f"agent-{number}@here/1")
        work(door, f"agent-{number}@here/1")
    door.sql("UPDATE steps SET heartbeat_at = now() - interval '2 min' WHERE agent_id LIKE 'agent-1%'")
    door.sql("UPDATE agents SET heartbeat_at = now() - interval '2 min' WHERE id LIKE 'agent-1%'")
    door.sql("UPDATE steps SET progress_at = now() - interval '2 hours' WHERE agent_id LIKE 'agent-2%'")

    stalled = door.get("/agents/stalled")["data"]

    assert [(one["name"], one["stalled_why"].rpartition(" for ")[0]) for one in stalled] == [
        ("agent-1", "no heartbeat"),
        ("agent-2", "no progress"),
    ]


def test_a_reclaimed_step_is_queued_again_and_a_rehearsal_changes_nothing(door: Door) -> None:
    appear(door, "agent-1@here/1")
    task = work(door, "agent-1@here/1")

    rehearsed = door.client.post("/api/v1/agents/reclaim", json={"agent": "agent-1", "dry_run": True})
    still = door.get(f"/tasks/{task['id']}")["steps"][0]["status"]
    done = door.client.post("/api/v1/agents/reclaim", json={"agent": "agent-1"})
    nobody = door.client.post("/api/v1/agents/reclaim", json={"agent": "agent-9"})

    assert [line["task_id"] for line in rehearsed.json()["data"]] == [task["id"]]
    assert still == "running"
    assert [line["step_id"] for line in done.json()["data"]] == [task["steps"][0]["id"]]
    assert door.get(f"/tasks/{task['id']}")["steps"][0]["status"] == "queued"
    assert (nobody.status_code, nobody.json()["code"]) == (404, "agent-unknown")


def test_a_draining_agent_is_marked_although_no_broker_can_tell_it(door: Door) -> None:
    appear(door, "agent-1@here/1")

    answer = door.client.post("/api/v1/agents/agent-1@here/1/drain")
    draining = door.get("/agents")["data"][0]
    undone = door.client.post("/api/v1/agents/agent-1/drain", json={"on": False})

    assert (answer.status_code, answer.json()["agents"]) == (202, ["agent-1@here/1"])
    assert (draining["status"], draining["drain_requested"]) == ("draining", True)
    assert undone.status_code == 202
    assert door.get("/agents")["data"][0]["status"] == "idle"
