from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO, Any

import pytest
from sqlalchemy import text

from orchestrator.db.effects import LogChunk, StoredFile, add_artifact, append_logs
from orchestrator.db.sql import StepRef
from orchestrator.tasks.evidence import keep_log
from orchestrator.workspaces.artifacts import Artifacts, Stored
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer

PATCH = """diff --git a/reader.py b/reader.py
index 1..2 100644
--- a/reader.py
+++ b/reader.py
@@ -1,3 +1,4 @@
 import csv
--- not a header
+++ nor this
+more
 end
diff --git a/new file.txt b/new file.txt
new file mode 100644
--- /dev/null
+++ b/new file.txt
@@ -0,0 +1 @@
+hello
\\ No newline at end of file
diff --git a/logo.png b/logo.png
deleted file mode 100644
Binary files a/logo.png and /dev/null differ
"""
WAITING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND state = 'idle in transaction' AND query LIKE '%FROM logs%'
"""
LONG = bytes(range(256)) * 12_000


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


def keep(door: Door, task: dict[str, Any], kind: str, name: str, media_type: str, data: bytes) -> str:
    """Stores a file as a step does; gives the path of its content."""
    stored = door.wiring.artifacts.put(data)
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    with door.wiring.engine.begin() as connection:
        add_artifact(
            connection, step, StoredFile(kind, name, media_type, stored.size, stored.sha256, stored.key)
        )
    listed = door.get(f"/tasks/{task['id']}/artifacts")["data"]
    return str(next(line["content"] for line in listed if line["name"] == name))


def test_a_long_log_is_stored_whole_and_no_transaction_waits_for_the_store(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = door.create()
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    chunks = [LogChunk("stdout", f"first of {number}\nsecond of {number}\n") for number in range(450)]
    with door.wiring.engine.begin() as connection:
        append_logs(connection, step.task, step.step_id, 1, chunks)
    open_meanwhile: list[int] = []
    put = type(door.wiring.artifacts).put

    def watched(store: Artifacts, data: bytes | IO[bytes], key: str | None = None) -> Stored:
        with door.wiring.engine.connect() as connection:
            open_meanwhile.append(connection.execute(text(WAITING)).scalar_one())
        return put(store, data, key)

    with monkeypatch.context() as patched:
        patched.setattr(Artifacts, "put", watched)
        keep_log(door.wiring, step)

    listed = door.get(f"/tasks/{task['id']}/artifacts")["data"]
    content = next(line["content"] for line in listed if line["name"] == "task.log")
    lines = door.client.get(content).text.splitlines()
    told = [line.partition("stdout: ")[2] for line in lines]
    assert told == [f"{which} of {number}" for number in range(450) for which in ("first", "second")]
    assert open_meanwhile == [0]


def test_a_diff_is_summed_up_by_file_and_given_as_a_patch(door: Door) -> None:
    task = door.create()
    keep(door, task, "patch", "task.patch", "text/x-diff", PATCH.encode())

    summary = door.get(f"/tasks/{task['id']}/diff")
    patch = door.client.get(f"/api/v1/tasks/{task['id']}/diff", headers={"Accept": "text/x-diff"})

    assert [
        (file["path"], file["status"], file["additions"], file["deletions"], file["binary"])
        for file in summary["files"]
    ] == [
        ("reader.py", "modified", 2, 1, False),
        ("new file.txt", "added", 1, 0, False),
        ("logo.png", "deleted", 0, 0, True),
    ]
    assert (summary["additions"], summary["deletions"]) == (3, 1)
    assert (patch.status_code, patch.text) == (200, PATCH)
    assert patch.headers["content-type"].startswith("text/x-diff")


def test_a_task_that_changed_nothing_has_no_patch(door: Door) -> None:
    task = door.create()

    patch = door.client.get(f"/api/v1/tasks/{task['id']}/diff", headers={"Accept": "text/x-diff"})

    assert (patch.status_code, patch.json()["code"]) == (404, "diff-unavailable")
    assert door.get(f"/tasks/{task['id']}/diff")["files"] == []


def test_a_file_is_for_saving_whatever_it_claims_to_be(door: Door) -> None:
    task = door.create()
    path = keep(door, task, "report", 'a"b\u00e9/evil.html', "text/html", b"<script>alert(1)</script>")

    answer = door.client.get(path)

    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''evil.html"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    listed = door.get(f"/tasks/{task['id']}/artifacts")["data"]
    assert "key" not in listed[0]


def test_a_file_is_resumed_by_range_and_not_sent_again_when_it_is_the_same(door: Door) -> None:
    task = door.create()
    path = keep(door, task, "bundle", "all.bin", "application/octet-stream", LONG)

    whole = door.client.get(path)
    tag = whole.headers["etag"]
    part = door.client.get(path, headers={"Range": "bytes=1048570-1048585"})
    tail = door.client.get(path, headers={"Range": "bytes=-3"})
    rest = door.client.get(path, headers={"Range": "bytes=3071990-"})
    changed = door.client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    same = door.client.get(path, headers={"If-None-Match": tag})
    beyond = door.client.get(path, headers={"Range": "bytes=4000000-"})

    assert tag == f'"{hashlib.sha256(LONG).hexdigest()}"'
    assert whole.content == LONG
    assert (part.status_code, part.content) == (206, LONG[1048570:1048586])
    assert part.headers["content-range"] == f"bytes 1048570-1048585/{len(LONG)}"
    assert (tail.content, rest.content) == (LONG[-3:], LONG[3071990:])
    assert (changed.status_code, len(changed.content)) == (200, len(LONG))
    assert (same.status_code, same.content) == (304, b"")
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range-invalid")


def test_a_file_that_was_removed_from_the_store_is_a_clear_404(door: Door) -> None:
    task = door.create()
    path = keep(door, task, "log", "gone.txt", "text/plain", b"only here")
    stored = door.sql("SELECT key FROM artifacts WHERE name = 'gone.txt'")
    door.wiring.artifacts.delete(stored[0][0])

    answer = door.client.get(path)

    assert (answer.status_code, answer.json()["code"]) == (404, "artifact-unknown")


def test_a_file_of_another_task_is_not_found_under_this_one(door: Door) -> None:
    mine, other = door.create(), door.create()
    path = keep(door, mine, "log", "mine.txt", "text/plain", b"mine")

    answer = door.client.get(path.replace(mine["id"], other["id"]))

    assert (answer.status_code, answer.json()["code"]) == (404, "artifact-unknown")
