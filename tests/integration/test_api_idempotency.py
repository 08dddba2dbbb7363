from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from orchestrator.commands import idempotency
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def doors(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Door, Door]]:
    """Two API processes' worth of server over one database."""
    url, folder = migrated(postgres_server), tmp_path_factory.mktemp("api")
    with served(wired(url, folder)) as one, served(wired(url, folder)) as other:
        yield one, other


def send(door: Door, key: str, path: str = "/tasks", **body: Any) -> httpx2.Response:
    return door.client.post(
        f"/api/v1{path}", json={"description": "Once", **body}, headers={"Idempotency-Key": key}
    )


def test_a_repeated_request_gets_the_same_answer_from_another_process(doors: tuple[Door, Door]) -> None:
    first, second = send(doors[0], "repeat"), send(doors[1], "repeat")

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json() == first.json()
    assert second.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"


def test_a_key_with_another_body_or_path_is_refused(doors: tuple[Door, Door]) -> None:
    created = send(doors[0], "reused").json()

    body = send(doors[1], "reused", title="Other")
    path = doors[0].client.post(
        f"/api/v1/tasks/{created['id']}/cancel", headers={"Idempotency-Key": "reused"}
    )

    assert [(answer.status_code, answer.json()["code"]) for answer in (body, path)] == [
        (422, "idempotency-key-reused")
    ] * 2


def test_a_request_that_was_refused_may_be_corrected_under_the_same_key(doors: tuple[Door, Door]) -> None:
    refused = send(doors[0], "corrected", agent={"type": "nobody"})
    corrected = send(doors[0], "corrected")

    assert (refused.status_code, corrected.status_code) == (422, 201)


def test_a_request_that_is_still_worked_on_is_told_so(doors: tuple[Door, Door]) -> None:
    with doors[0].wiring.engine.begin() as connection:
        assert idempotency.recall(connection, "default", "busy", "whatever") is None
        answer = send(doors[1], "busy")

    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency-in-progress")
    assert answer.json()["retryable"] is True
    assert answer.headers["retry-after"]


def test_many_at_once_make_one_task(doors: tuple[Door, Door]) -> None:
    def attempt(number: int) -> tuple[int, str | None]:
        with doors[number % 2].new_client({"X-API-Key": doors[0].key}) as client:
            answer = client.post(
                "/api/v1/tasks", json={"description": "Rush"}, headers={"Idempotency-Key": "rush"}
            )
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(16)))

    made = doors[0].sql("SELECT id FROM tasks WHERE description = 'Rush'")
    assert len(made) == 1
    assert {status for status, _ in answers} <= {201, 409}
    assert {task for status, task in answers if status == 201} == {made[0][0]}


def test_an_intervention_that_is_repeated_happens_once(doors: tuple[Door, Door]) -> None:
    created = send(doors[0], "to-retry").json()
    doors[0].client.post(f"/api/v1/tasks/{created['id']}/cancel")

    headers = {"Idempotency-Key": "retry-once"}
    answers = [
        door.client.post(f"/api/v1/tasks/{created['id']}/retry", headers=headers) for door in (*doors, *doors)
    ]

    assert [answer.status_code for answer in answers] == [202] * 4
    assert doors[0].get(f"/tasks/{created['id']}")["workflow"]["number"] == 2
