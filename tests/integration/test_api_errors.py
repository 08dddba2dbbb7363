from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.commands.keys import Scope
from orchestrator.local.credentials import new_api_key
from tests.integration.api_server import API_KEY, Door, migrated, served, wired
from tests.servers import PostgresServer

MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    wiring = wired(migrated(postgres_server), tmp_path_factory.mktemp("api"), max_body_bytes=MOST_BYTES)
    with served(wiring) as open_door:
        yield open_door


@pytest.fixture
def tasks_before(door: Door) -> Iterator[None]:
    """Whatever the test sends, no task comes of it."""
    before = door.sql("SELECT count(*) FROM tasks")
    yield
    assert door.sql("SELECT count(*) FROM tasks") == before


LOOP = [{"id": "a", "description": "A", "needs": ["b"]}, {"id": "b", "description": "B", "needs": ["a"]}]
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "request-invalid", "/description"),
    ({"description": ""}, "request-invalid", "/description"),
    ({"description": "x", "requirments": []}, "request-invalid", ""),
    ({"description": "x", "priority": "urgent"}, "request-invalid", "/priority"),
    ({"description": "bell \a"}, "request-invalid", "/description"),
    ({"description": "nul \0"}, "request-invalid", "/description"),
    ({"description": "x" * 100_001}, "request-invalid", "/description"),
    ({"description": "x", "title": "two\nlines"}, "request-invalid", "/title"),
    ({"description": "x", "execution_mode": "strict"}, "mode-unavailable", "/execution_mode"),
    ({"description": "x", "gates": ["code_style"]}, "mode-unavailable", "/gates"),
    ({"description": "x", "steps": LOOP}, "plan-cycle", "/steps/0/needs/0"),
    ({"description": "x", "repository": {"url": "file:///etc"}}, "repository-forbidden", ""),
    ({"description": "x", "repository": {"url": "ext::sh -c id"}}, "repository-forbidden", ""),
    ({"description": "x", "agent": {"type": "nobody"}}, "agent-unknown", "/agent/type"),
    ({"description": "x", "id": "../../etc"}, "request-invalid", "/id"),
    ({"description": "x", "validate_only": True}, "mode-unavailable", "/validate_only"),
    ({"description": "x", "agent": {"capabilities": [""]}}, "request-invalid", "/agent/capabilities/0"),
    (
        {"description": "x", "steps": [{"id": "a", "description": "A", "agent": "cursor"}]},
        "agent-unknown",
        "/steps/0/agent",
    ),
    ({"description": "x", "agent": {"type": "claude-code"}, "model": "gpt-5"}, "agent-unfit", "/agent/type"),
    ({"description": "x", "agent": {"type": "aider", "tool_approval": ["write"]}}, "agent-unfit", ""),
    (
        {
            "description": "x",
            "model": "claude-sonnet-4-5",
            "steps": [{"id": "a", "description": "A", "agent": "codex"}],
        },
        "agent-unfit",
        "/steps/0/agent",
    ),
    ({"description": "x", "agent": {"tool_approval": ["exectue"]}}, "request-invalid", ""),
]


@pytest.mark.usefixtures("tasks_before")
@pytest.mark.parametrize(("body", "code", "pointer"), BAD)
def test_a_bad_request_is_told_what_is_wrong_and_where(
    door: Door, body: dict[str, Any], code: str, pointer: str
) -> None:
    answer = door.client.post("/api/v1/tasks", json=body)

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"/problems/{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["next_actions"], "what to do next is missing"
    if pointer:
        assert pointer in [fault["pointer"] for fault in problem["errors"]]


RAW: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"{", {}, 400, "request-malformed"),
    (b'{"description": NaN}', {}, 400, "request-malformed"),
    (b'{"description": "\\ud800"}', {}, 400, "request-malformed"),
    (b"\xff\xfe", {}, 400, "request-malformed"),
    (b"[" * 100_000, {}, 400, "request-malformed"),
    (b'{"x_deep": ' + b"[" * 70 + b"]" * 70 + b"}", {}, 400, "request-malformed"),
    (b"[]", {}, 422, "request-invalid"),
    (b'"text"', {}, 422, "request-invalid"),
    (b"", {}, 422, "request-invalid"),
    (b"description=x", {"content-type": "application/x-www-form-urlencoded"}, 415, "media-type-unsupported"),
    (b'{"description": "x"}', {"content-type": "text/plain"}, 415, "media-type-unsupported"),
    (b'{"description": "x"}', {"idempotency-key": "k" * 256}, 400, "idempotency-key-invalid"),
    (b" " * (MOST_BYTES + 1), {}, 413, "body-too-large"),
]


@pytest.mark.usefixtures("tasks_before")
@pytest.mark.parametrize(("raw", "headers", "status", "code"), RAW)
def test_what_is_no_json_object_reaches_no_command(
    door: Door, raw: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = door.client.post(
        "/api/v1/tasks", content=raw, headers={"content-type": "application/json", **headers}
    )

    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.usefixtures("tasks_before")
def test_a_body_of_undeclared_length_is_cut_at_the_same_limit(door: Door) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MOST_BYTES // 1000 + 2):
            yield b" " * 1000

    answer = door.client.post(
        "/api/v1/tasks", content=endless(), headers={"content-type": "application/json"}
    )

    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("PUT", "/api/v1/tasks", 405, "method-not-allowed"),
        ("GET", "/api/v1/tasks/none", 404, "task-unknown"),
        ("GET", "/api/v1/tasks/%00", 404, "task-unknown"),
        ("GET", "/api/v1/tasks/" + "x" * 500, 404, "task-unknown"),
        ("GET", "/api/v1/tasks?q=%00", 400, "filter-invalid"),
        ("GET", "/api/v1/tasks?limit=many", 422, "request-invalid"),
        ("GET", "/api/v1/tasks?since=yesterday", 422, "request-invalid"),
        ("GET", "/api/v1/tasks?status=running%00", 400, "filter-invalid"),
        ("GET", "/api/v1/tasks?priority=%00", 400, "filter-invalid"),
        ("GET", "/api/v1/questions/q_%00", 404, "question-unknown"),
        ("GET", "/api/v1/tasks?priority=urgent", 400, "filter-invalid"),
        ("GET", "/api/v1/tasks?statsu=failed", 400, "parameter-unknown"),
        ("GET", "/api/v1/tasks?status=failed&count=exact", 400, "parameter-unknown"),
        ("POST", "/api/v1/tasks/none/cancel?force=true", 400, "parameter-unknown"),
        ("GET", "/api/v1/tasks/none/events?after_sec=1", 400, "parameter-unknown"),
        ("POST", "/api/v1/tasks/none/cancel", 404, "task-unknown"),
        ("POST", "/api/v1/agents/nobody/drain", 404, "agent-unknown"),
        ("GET", "/problems/no-such-code", 404, "not-found"),
    ],
)
def test_every_error_is_a_problem(door: Door, method: str, path: str, status: int, code: str) -> None:
    answer = door.client.request(method, path)

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["instance"] == urlsplit(str(answer.request.url)).path.replace("%00", "\0")


def test_the_choice_is_told_of_what_a_query_may_say(door: Door) -> None:
    unknown = door.client.get("/api/v1/tasks?statsu=failed").json()
    priority = door.client.get("/api/v1/tasks?priority=urgent").json()

    assert "no query parameter 'statsu' here; it takes cursor, limit," in unknown["detail"]
    assert priority["detail"] == "priority must be one of critical, high, medium, low (got 'urgent')."
    assert door.client.get("/api/v1/tasks?priority=NORMAL").status_code == 200


def test_a_retry_from_a_later_place_is_not_built_yet(door: Door) -> None:
    task = door.create()
    door.client.post(f"/api/v1/tasks/{task['id']}/cancel")
    path = f"/api/v1/tasks/{task['id']}/retry"

    later = door.client.post(path, json={"from": "failed_step"})
    wrong = door.client.post(path, json={"from": "yesterday"})
    start = door.client.post(path, json={"from": "start", "reason": "again"})

    assert (later.status_code, later.json()["code"]) == (422, "mode-unavailable")
    assert later.json()["errors"][0]["pointer"] == "/from"
    assert (wrong.status_code, wrong.json()["code"]) == (422, "request-invalid")
    assert (start.status_code, start.json()["status"]) == (202, "queued")


def test_a_page_that_rebinds_its_name_to_loopback_gets_nothing(door: Door) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "Host": "evil.example:8000"}
    with door.new_client(headers) as page:
        answer = page.get("/api/v1/tasks")

    assert (answer.status_code, answer.json()["code"]) == (400, "host-not-allowed")


def test_a_raw_request_with_a_bad_host_is_no_way_in(door: Door) -> None:
    where = urlsplit(door.url)
    with socket.create_connection((where.hostname or "", where.port or 0)) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: wire.recv(65536), b""))

    assert said.startswith(b"HTTP/1.1 400")


def test_every_answer_forbids_what_a_browser_might_make_of_it(door: Door) -> None:
    for answer in (door.client.get("/api/v1/tasks"), door.client.get("/nothing"), door.client.get("/livez")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


# ---- keys


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key-missing"),
        ({"Authorization": "Basic eDp5"}, "key-missing"),
        ({"Authorization": "Bearer"}, "key-missing"),
        ({"Authorization": f"Bearer {API_KEY[:-1]}_"}, "key-invalid"),
        ({"X-API-Key": new_api_key()}, "key-invalid"),
        ({"X-API-Key": "' OR 1=1 --"}, "key-invalid"),
    ],
)
def test_nothing_is_shown_without_a_valid_key(door: Door, headers: dict[str, str], code: str) -> None:
    with door.new_client(headers) as stranger:
        answer = stranger.get("/api/v1/tasks")

    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_in_the_url_is_not_looked_at(door: Door) -> None:
    with door.new_client() as stranger:
        assert stranger.get("/api/v1/tasks", params={"api_key": API_KEY}).status_code == 401


def test_a_key_may_do_what_its_scope_says_and_no_more(door: Door) -> None:
    reader = door.new_client({"X-API-Key": door.new_key(Scope.READ)})
    writer = door.new_client({"X-API-Key": door.new_key(Scope.WRITE)})

    with reader, writer:
        assert reader.get("/api/v1/tasks").status_code == 200
        refused = reader.post("/api/v1/tasks", json={"description": "x"})
        assert (refused.status_code, refused.json()["code"]) == (403, "scope-missing")
        assert writer.post("/api/v1/tasks", json={"description": "x"}).status_code == 201
        assert writer.post("/api/v1/agents/reclaim").status_code == 403


def test_a_revoked_key_opens_nothing_from_then_on(door: Door) -> None:
    key = door.new_key(Scope.READ, "leavers")
    with door.new_client({"X-API-Key": key}) as leaver:
        assert leaver.get("/api/v1/tasks").status_code == 200
        door.sql("UPDATE api_keys SET revoked_at = clock_timestamp() WHERE tenant_id = 'leavers'")
        assert leaver.get("/api/v1/tasks").status_code == 401


def test_a_key_is_nowhere_in_the_database(door: Door) -> None:
    kept = door.sql("SELECT prefix, sha256, row_to_json(k)::text FROM api_keys k WHERE name = 'configured'")

    assert len(kept) == 1
    assert API_KEY.startswith(kept[0][0])
    assert API_KEY.rpartition("_")[2] not in kept[0][2]


# ---- health


def test_health_is_open_and_its_details_are_not(door: Door) -> None:
    with door.new_client() as stranger:
        shown = stranger.get("/health")
        alive = stranger.get("/livez")
        ready = stranger.get("/readyz")
        wrong = stranger.get("/health", headers={"X-API-Key": new_api_key()})
    details = door.client.get("/health").json()

    assert set(shown.json()) == {"status", "version"}
    assert [alive.status_code, ready.status_code, wrong.status_code] == [200, 200, 401]
    assert details["components"]["database"]["status"] == "ok"
    assert details["components"]["broker"]["status"] == "unavailable"
    assert details["status"] == "degraded"


def test_the_description_of_the_api_names_every_route_once(door: Door) -> None:
    described = door.client.get("/openapi.json").json()

    operations = [found["operationId"] for path in described["paths"].values() for found in path.values()]
    assert len(operations) == len(set(operations))
    assert {"tasks.create", "tasks.events", "questions.answer", "agents.reclaim"} <= set(operations)
    assert "TaskRequest" in described["components"]["schemas"]
    assert "password" not in json.dumps(described)


def test_the_type_of_a_problem_leads_to_its_explanation(door: Door) -> None:
    problem = door.client.get("/api/v1/tasks/none").json()

    explained = door.client.get(problem["type"]).json()

    assert explained["title"] == problem["title"] == EXPLANATIONS["task-unknown"].title
