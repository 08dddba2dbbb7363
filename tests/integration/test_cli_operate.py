from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.db.effects import LogChunk, append_logs
from orchestrator.db.sql import TaskRef
from tests.integration.api_server import API_KEY, Door, migrated, served, wired
from tests.servers import PostgresServer

PROGRAM = (sys.executable, "-m", "orchestrator")


@pytest.fixture
def door(postgres_server: PostgresServer, redis_url: str, tmp_path: Path) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path, broker_url=redis_url)) as open_door:
        yield open_door


def run(door: Door, *words: str) -> subprocess.CompletedProcess[str]:
    settings = door.wiring.settings
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    assert settings.broker_url
    return subprocess.run(
        [*PROGRAM, *words],
        env={
            **kept,
            "ORCHESTRATOR_DATABASE_URL": door.wiring.database_url or "",
            "ORCHESTRATOR_BROKER_URL": settings.broker_url.get_secret_value(),
            "ORCHESTRATOR_MESSAGE_SECRET": "not a secret, a test's",
            "ORCHESTRATOR_DATA_DIR": str(settings.data_dir),
            "ORCHESTRATOR_API_URL": door.url,
            "ORCHESTRATOR_API_KEY": API_KEY,
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def ended(door: Door, days: int) -> str:
    """A task that was cancelled so long ago, with a log."""
    task: str = door.create()["id"]
    with door.wiring.engine.begin() as connection:
        append_logs(connection, TaskRef("default", task), None, None, [LogChunk("stdout", "hello")])
    door.client.post(f"/api/v1/tasks/{task}/cancel")
    door.sql("UPDATE tasks SET finished_at = now() - make_interval(days => :d) WHERE id = :t", d=days, t=task)
    return task


def test_what_ended_long_ago_is_archived_and_what_is_recent_or_live_is_not(door: Door) -> None:
    old, recent, live = ended(door, 100), ended(door, 10), door.create()["id"]

    counted = run(door, "db", "retention", "--older-than", "90d", "--dry-run")
    done = run(door, "db", "retention", "--older-than", "90d")
    again = run(door, "db", "retention", "--older-than", "90d")

    assert counted.stdout == "1 tasks would be archived\n"
    assert done.stdout.startswith("1 tasks archived"), done.stderr
    assert again.stdout.startswith("0 tasks archived")
    assert [door.get(f"/tasks/{task}/events")["data"] == [] for task in (old, recent, live)] == [
        True,
        False,
        False,
    ]
    assert door.get(f"/tasks/{old}")["status"] == "cancelled"
    assert [task["id"] for task in door.get("/tasks")["data"]] == [live, recent]


def test_a_task_whose_caller_has_not_heard_of_its_end_is_not_archived(door: Door) -> None:
    task = ended(door, 100)
    door.sql("UPDATE tasks SET entry_signature = '{}' WHERE id = :task", task=task)

    assert run(door, "db", "retention").stdout.startswith("0 tasks archived")


def test_a_backup_brings_back_what_was_there_and_nothing_else(door: Door, tmp_path: Path) -> None:
    kept = door.create(title="Before")["id"]
    dump = tmp_path / "all.dump"

    wrote = run(door, "db", "backup", str(dump))
    later = door.create(title="After")["id"]
    unconfirmed = run(door, "db", "restore", str(dump))
    door.wiring.engine.dispose()
    restored = run(door, "db", "restore", str(dump), "--yes")

    assert wrote.returncode == 0, wrote.stderr
    assert dump.stat().st_mode & 0o777 == 0o600
    assert (unconfirmed.returncode, "--yes" in unconfirmed.stderr) == (2, True)
    assert restored.returncode == 0, restored.stderr
    assert door.get(f"/tasks/{kept}")["title"] == "Before"
    assert door.client.get(f"/api/v1/tasks/{later}").status_code == 404


def test_a_backup_that_fails_leaves_no_file_and_no_password_in_its_message(
    door: Door, tmp_path: Path
) -> None:
    done = run(door, "db", "backup", str(tmp_path / "nowhere" / "all.dump"))

    assert done.returncode == 2
    assert list(tmp_path.glob("**/*.dump*")) == []
    assert door.wiring.engine.url.password
    assert door.wiring.engine.url.password not in done.stderr


def test_a_purged_queue_loses_messages_and_no_task(door: Door) -> None:
    task = door.create(priority="high")["id"]

    purged = run(door, "queue", "purge", "high", "--yes")
    again = run(door, "queue", "purge", "high", "--yes")
    wrong = run(door, "queue", "purge", "express", "--yes")

    assert (purged.stdout, again.stdout) == ("1 messages thrown away\n", "0 messages thrown away\n")
    assert door.get(f"/tasks/{task}")["status"] == "queued"
    assert (wrong.returncode, "unknown-queue" in wrong.stderr) == (2, True)


def test_each_of_these_commands_prints_one_object_for_programs(door: Door, tmp_path: Path) -> None:
    ended(door, 100)
    dump = str(tmp_path / "all.dump")

    said = {
        words: json.loads(run(door, *words, "--json").stdout)
        for words in (
            ("db", "upgrade"),
            ("db", "retention", "--dry-run"),
            ("db", "retention"),
            ("db", "backup", dump),
            ("queue", "purge", "low", "--yes"),
            ("down",),
        )
    }

    assert list(said.values()) == [
        {"migrations": 0},
        {"dry_run": True, "tasks": 1},
        {"dry_run": False, "tasks": 1, "idempotency_keys": 0},
        {"file": dump, "bytes": Path(dump).stat().st_size},
        {"lane": "low", "messages": 0},
        {"stopped": False},
    ]
    door.wiring.engine.dispose()
    restored = run(door, "db", "restore", dump, "--yes", "--json")
    assert json.loads(restored.stdout) == {"file": dump, "restored": True}


def test_the_schema_is_brought_up_to_date_once(door: Door, postgres_server: PostgresServer) -> None:
    fresh = postgres_server.fresh()
    environment = {**os.environ, "ORCHESTRATOR_DATABASE_URL": fresh, "ORCHESTRATOR_DATA_DIR": "/nonexistent"}
    del door

    said = [
        subprocess.run(
            [*PROGRAM, "db", "upgrade"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout
        for _ in range(2)
    ]

    assert said[0].endswith("applied\n")
    assert said[1] == "up to date\n"
