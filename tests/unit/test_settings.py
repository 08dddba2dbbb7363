"""What a setting that can't be right is answered with."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

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
