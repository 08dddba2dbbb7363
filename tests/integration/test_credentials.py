"""Private repositories: a name in the task, a password where the worker runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from orchestrator.config import Settings
from orchestrator.core.errors import Refused
from orchestrator.workspaces.credentials import Credentials, CredentialUnusable
from tests.git_server import PASSWORD, USER, GitServer, serving
from tests.integration.repositories import git, repository
from tests.integration.stack import Stack, worker

STEP = {"id": "a", "description": "Write", "spec": {"do": "script"}}


@pytest.fixture
def private(tmp_path: Path) -> Iterator[GitServer]:
    """A server that has `team/project.git`, and `other/project.git` beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED WITH A PASSWORD: there is no openssl on PATH")
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    for name in ("team", "other"):
        git(tmp_path, "clone", "-q", "--bare", str(source), str(tmp_path / "served" / name / "project.git"))
        git(tmp_path / "served" / name / "project.git", "config", "http.receivepack", "true")
    with serving(tmp_path / "served", tmp_path) as server:
        yield server


def knowing(stack: Stack, server: GitServer, **names: str) -> Stack:
    """The installation, with credentials at these addresses, in the worker's environment alone."""
    login = f"https://{USER}:{quote(PASSWORD, safe='')}@"
    known = {name: f"{server.url}{path}".replace("https://", login) for name, path in names.items()}
    return Stack(
        stack.database_url,
        stack.redis_url,
        stack.folder,
        {
            "ORCHESTRATOR_ALLOW_PRIVATE_ADDRESSES": "true",
            "ORCHESTRATOR_CREDENTIALS": json.dumps(known),
            "GIT_SSL_CAINFO": str(server.authority),
        },
    )


def asked(server: GitServer, credential: str | None, path: str = "/team/project.git") -> dict[str, Any]:
    where = {"url": f"{server.url}{path}", "push": True, "credential": credential}
    return {"description": "Write", "repository": where, "steps": [STEP]}


def test_a_private_repository_is_fetched_and_pushed_to_with_a_named_credential(
    stack: Stack, private: GitServer
) -> None:
    stack = knowing(stack, private, forge="/team/")
    with worker(stack) as process:
        stack.call(asked(private, "forge"), task_id="named")
        assert stack.ends("named") == "completed"
        said = process.text()
    tip = stack.ledger.row("named")["tip_commit"]
    assert git(private.root / "team" / "project.git", "rev-parse", "agent/named") == tip
    assert any(path.endswith("/git-receive-pack") and user == USER for path, user in private.asked)
    rows = "SELECT string_agg(to_jsonb(x)::text, '') AS text FROM"
    kept = [
        stack.ledger.rows(f"{rows} {table} x")[0]["text"] or ""
        for table in ("tasks", "steps", "events", "logs", "effects", "attempts")
    ]
    files = [at.read_text("utf-8", "replace") for at in stack.folder.rglob("*") if at.is_file()]
    for text in (said, *kept, *files):
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text
    stack.close()


@pytest.mark.parametrize(
    ("credential", "path", "code", "why"),
    [
        (None, "/team/project.git", "repository-unreachable", "could not read Username"),
        ("unheard-of", "/team/project.git", "credential-unusable", "no credential 'unheard-of'"),
        ("forge", "/other/project.git", "credential-unusable", "for another address"),
        ("forge", "/team/../other/project.git", "credential-unusable", "for another address"),
    ],
)
def test_a_repository_that_a_credential_is_not_for_fails_the_task_and_sees_no_password(
    stack: Stack, private: GitServer, credential: str | None, path: str, code: str, why: str
) -> None:
    stack = knowing(stack, private, forge="/team/")
    with worker(stack):
        stack.call(asked(private, credential, path), task_id="t")
        assert stack.ends("t") == "failed"
    (row,) = stack.ledger.rows("SELECT error FROM steps WHERE key = 'a'")
    assert row["error"]["code"] == code
    assert why in row["error"]["message"]
    assert not [user for _, user in private.asked if user]
    stack.close()


def test_a_password_in_the_address_is_refused_and_the_hint_is_one_that_can_be_followed(stack: Stack) -> None:
    with pytest.raises(Refused, match=r"name one in repository\.credential"):
        stack.call({"description": "x", "repository": {"url": "https://ci:secret@forge.example/a.git"}})
    for given in (
        {"path": "/a", "credential": "forge"},
        {"url": "ssh://git@forge.example/a", "credential": "forge"},
        {"url": "https://forge.example/a", "credential": "for ge"},
    ):
        with pytest.raises(Refused, match="credential"):
            stack.call({"description": "x", "repository": given})
    assert stack.ledger.rows("SELECT 1 FROM tasks") == []


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("https://forge.example/team/a.git", True),
        ("https://forge.example:443/team/b/c.git", True),
        ("https://forge.example/teams/a.git", False),
        ("https://forge.example/a.git", False),
        ("https://forge.example:8443/team/a.git", False),
        ("https://forge.example.evil.example/team/a.git", False),
        ("https://forge.example/team/%2e%2e/a.git", False),
        ("ssh://forge.example/team/a.git", False),
    ],
)
def test_a_credential_goes_to_its_own_address_and_below_it(tmp_path: Path, address: str, fits: bool) -> None:
    known = Credentials({"forge": "https://u:p@forge.example/team/"}, tmp_path)
    if fits:
        assert (known.environment("forge", address) or {})["ORCHESTRATOR_GIT_PASSWORD"] == "p"
        return
    with pytest.raises(CredentialUnusable):
        known.environment("forge", address)


@pytest.mark.parametrize("value", ['{"a": "https://hunter2@h/"}', '{"a": "http://u:hunter2@h/"}', "{hunter2"])
def test_a_setting_that_is_no_credential_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CREDENTIALS", "")
    assert Settings().credentials == {}
    monkeypatch.setenv("ORCHESTRATOR_CREDENTIALS", value)
    with pytest.raises(ValidationError) as found:
        Settings()
    assert "hunter2" not in str(found.value)
