"""What a setting that can't be right is answered with."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from orchestrator.cli import session
from orchestrator.config import Settings


@pytest.mark.parametrize("mark", ["/", "#", "?", "[", ""])
def test_a_credential_that_is_badly_written_is_refused_without_a_part_of_it(
    mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"https://ci:s3cret{mark}part@forge.example/team/" if mark else "https://ci@forge.example/"
    monkeypatch.setenv("ORCHESTRATOR_CREDENTIALS", json.dumps({"forge": address}))
    with pytest.raises(ValidationError) as found:
        Settings()
    assert "forge is not https://user:password@host/" in str(found.value)
    assert "s3cret" not in str(found.value)
    assert found.value.__cause__ is None


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("/far/away", "/far/away/orchestrator/default"),
        ("not/absolute", "/home/ada/.local/share/orchestrator/default"),
        ("", "/home/ada/.local/share/orchestrator/default"),
    ],
)
def test_the_data_is_kept_where_the_user_s_data_is(
    named: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For servers and for the clients that look there for what runs."""
    monkeypatch.delenv("ORCHESTRATOR_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_DATA_HOME", named)
    assert str(Settings().data_dir) == str(session.data_dir()) == folder
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", "/named")
    assert str(Settings().data_dir) == str(session.data_dir()) == "/named"
