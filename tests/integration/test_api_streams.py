from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from orchestrator.api.streams import BATCH, numbered
from orchestrator.api.wakeups import Wakeups
from orchestrator.commands.retention import archive
from orchestrator.db.effects import LogChunk, append_logs
from orchestrator.db.sql import TaskRef
from orchestrator.queries.events import Mark, TaskEvent, events, marks
from orchestrator.queries.progress import Progress, progress
from orchestrator.queries.reading import glance
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


@dataclass(frozen=True)
class Heard:
    event: str
    number: int | None
    data: dict[str, Any]


@contextmanager
def listening(door: Door, path: str, **headers: str) -> Iterator[Iterator[Heard]]:
    with door.client.stream("GET", f"/api/v1/tasks/{path}", headers={**STREAM, **headers}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (
            Heard(found.event, int(found.id) if found.id else None, json.loads(found.data))
            for found in httpx2.EventSource(response)
            if found.data  # the stream begins with `retry` alone
        )


def cancel(door: Door, task_id: str) -> None:
    with door.new_client({"X-API-Key": door.key}) as other:
        assert other.post(f"/api/v1/tasks/{task_id}/cancel").status_code == 202


def log(door: Door, task_id: str, *texts: str, stream: str = "stdout") -> None:
    with door.wiring.engine.begin() as connection:
        append_logs(
            connection, TaskRef("default", task_id), None, None, [LogChunk(stream, text) for text in texts]
        )


def test_a_listener_hears_what_was_and_what_comes_and_the_end(door: Door) -> None:
    task = door.create()
    with listening(door, f"{task['id']}/events") as heard:
        first = next(heard)
        cancel(door, task["id"])
        rest = list(heard)

    assert (first.event, first.number) == ("status", 1)
    numbers = [one.number for one in rest if one.event != "end"]
    assert numbers == list(range(2, len(numbers) + 2))
    assert (rest[-1].event, rest[-1].data["status"]) == ("end", "cancelled")


def test_a_listener_that_comes_back_misses_nothing_and_hears_nothing_twice(door: Door) -> None:
    task = door.create()
    cancel(door, task["id"])
    with listening(door, f"{task['id']}/events") as heard:
        everything = [one for one in heard if one.event != "end"]

    for cut in range(len(everything)):
        last = str(everything[cut].number)
        if cut + 1 == len(everything):
            break
        with listening(door, f"{task['id']}/events", **{"Last-Event-ID": last}) as heard:
            assert [one for one in heard if one.event != "end"] == everything[cut + 1 :]


def test_what_comes_between_a_look_and_the_reading_is_heard_once(door: Door) -> None:
    task = door.create()["id"]
    ref, engine = TaskRef("default", task), door.wiring.engine
    reads: list[int] = []

    def read(after: int) -> tuple[TaskEvent, ...]:
        if not reads:
            cancel(door, task)  # its events are newer than the look that led here
        reads.append(after)
        with glance(engine) as connection:
            return events(connection, "default", task, after=after, limit=BATCH)

    def look(wanted: Collection[TaskRef]) -> Mapping[TaskRef, Mark]:
        with glance(engine) as connection:
            return marks(connection, wanted)

    def stands() -> Progress:
        with glance(engine) as connection:
            return progress(connection, "default", task)

    async def hear() -> list[str]:
        heard = numbered(Wakeups(look), ref, 0, read, lambda mark: mark.event, stands)
        return [frame async for frame in heard if frame.startswith("id: ")]

    numbers = [frame.split()[1] for frame in asyncio.run(hear())]
    assert len(numbers) > 2
    assert numbers == [*map(str, range(1, len(numbers))), numbers[-2]], "the end has the last one's number"


def test_a_listener_behind_what_was_archived_is_told_how_the_task_stands_instead(door: Door) -> None:
    task = door.create()
    log(door, task["id"], "hello")
    cancel(door, task["id"])
    door.sql("UPDATE tasks SET finished_at = finished_at - interval '100 days' WHERE id = :t", t=task["id"])
    with door.wiring.engine.begin() as connection:
        assert archive(connection, "default", timedelta(days=90)).tasks == 1

    for path, last in (("events", "1"), ("events", "0"), ("logs?follow=1", "0")):
        headers = {"Last-Event-ID": last} if last != "0" else {}
        with listening(door, f"{task['id']}/{path}", **headers) as heard:
            reset, end = heard
        assert (reset.event, end.event) == ("reset", "end")
        assert reset.data["status"] == "cancelled"
        assert reset.data["seq"] == end.data["seq"] or path != "events"
    with listening(door, f"{task['id']}/logs?follow=1&q=none") as heard:
        assert [one.event for one in heard] == ["end"], "a filter leaves rows out, too"


def test_a_browser_that_reconnects_after_the_end_is_told_to_stop(door: Door) -> None:
    task = door.create()
    log(door, task["id"], "hello")
    cancel(door, task["id"])
    seq = str(door.get(f"/tasks/{task['id']}")["seq"])

    for path, last in (("events", seq), ("progress", seq), ("logs?follow=1", "1")):
        answer = door.client.get(
            f"/api/v1/tasks/{task['id']}/{path}", headers={**STREAM, "Last-Event-ID": last}
        )
        assert (path, answer.status_code, answer.content) == (path, 204, b"")


def test_progress_comes_in_the_promised_form_at_once_and_ends(door: Door) -> None:
    task = door.create()
    with door.client.stream("GET", f"/api/v1/tasks/{task['id']}/progress", headers=STREAM) as response:
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        said = next(line for line in lines if line.startswith("data:"))
        cancel(door, task["id"])
        rest = [line for line in lines if line.startswith("event:")]

    start = f'data: {{"task_id": "{task["id"]}", "progress": 0.0, "current_step": 1, '
    assert said.startswith(start)
    assert rest[-1] == "event: end"


def test_logs_are_followed_from_the_first_line_and_filtered(door: Door) -> None:
    task = door.create()
    log(door, task["id"], "one\n", "two\n")
    log(door, task["id"], "noise\n", stream="stderr")
    with listening(door, f"{task['id']}/logs?follow=1&stream=stdout") as heard:
        first = [next(heard), next(heard)]
        log(door, task["id"], "three\n")
        third = next(heard)
        cancel(door, task["id"])
        end = list(heard)

    assert [one.data["text"] for one in (*first, third)] == ["one\n", "two\n", "three\n"]
    assert third.number == 4
    assert [one.event for one in end] == ["end"]


def test_logs_come_as_text_and_as_lines_of_json_too(door: Door) -> None:
    task = door.create()
    log(door, task["id"], "one", "two\n", "three")
    path = f"/api/v1/tasks/{task['id']}/logs"

    text = door.client.get(path, headers={"Accept": "text/plain"})
    lines = door.client.get(path, headers={"Accept": "application/x-ndjson"}, params={"tail": 2})
    page = door.client.get(path, params={"limit": 1}).json()

    assert text.text == "one\ntwo\nthree\n"
    assert [json.loads(line)["seq"] for line in lines.text.splitlines()] == [2, 3]
    assert (page["has_more"], page["next_after"]) == (True, 1)
    assert door.get(f"/tasks/{task['id']}/logs?q=TW")["data"][0]["text"] == "two\n"


def test_a_long_log_reaches_the_listener_whole(door: Door) -> None:
    task = door.create()
    log(door, task["id"], *(f"line {number}" for number in range(1, 1701)))
    cancel(door, task["id"])

    with listening(door, f"{task['id']}/logs?follow=1") as heard:
        numbers = [one.number for one in heard if one.event == "log"]

    assert numbers == list(range(1, 1701))


def test_a_dead_database_is_a_503_and_a_stream_goes_on_afterwards(
    door: Door, postgres_server: PostgresServer
) -> None:
    task = door.create()
    name = str(door.wiring.engine.url.database)
    with listening(door, f"{task['id']}/events") as heard:
        assert next(heard).number == 1
        postgres_server.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres_server.run(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        with door.new_client({"X-API-Key": door.key}) as other:
            looked = other.get(f"/api/v1/tasks/{task['id']}")
            created = other.post("/api/v1/tasks", json={"description": "x"})
            health = other.get("/health")
            ready = other.get("/readyz")
            alive = other.get("/livez")
        postgres_server.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        cancel(door, task["id"])
        rest = list(heard)

    for answer in (looked, created):
        assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
        assert answer.headers["retry-after"]
        assert name not in answer.text
    assert [health.status_code, ready.status_code, alive.status_code] == [503, 503, 200]
    assert [one.number for one in rest if one.event != "end"] == list(range(2, 2 + len(rest) - 1))


def test_many_listeners_cost_one_query_a_tick(door: Door) -> None:
    tasks = [door.create()["id"] for _ in range(12)]
    ended = threading.Barrier(13, timeout=60)
    ends: list[str] = []

    def listen(task_id: str) -> None:
        with (
            door.new_client({"X-API-Key": door.key, **STREAM}) as client,
            client.stream("GET", f"/api/v1/tasks/{task_id}/progress") as response,
        ):
            source = iter(httpx2.EventSource(response))
            next(source)
            ended.wait()
            ends.extend(found.event for found in source if found.event == "end")

    threads = [threading.Thread(target=listen, args=(task_id,)) for task_id in tasks]
    for thread in threads:
        thread.start()
    ended.wait()
    for task_id in tasks:
        cancel(door, task_id)
    for thread in threads:
        thread.join(60)

    assert ends == ["end"] * 12
