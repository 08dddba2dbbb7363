"""One real stack for all the tests that get along with each other on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local import ports
from tests.acceptance.running import Doors, recorded, up


@pytest.fixture(scope="package")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """Leases and sweeps are short, so that a test sees the recovery that a user would wait a minute for."""
    port = str(ports.choose(0))
    folder = tmp_path_factory.mktemp("acceptance")
    with up(folder, "--ephemeral", "--port", port, lease="PT4S", sweep_every="PT1S") as (_, found):
        yield found


@pytest.fixture
def start(doors: Doors, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Submits a bundled recording, on a repository of this test's own."""

    def submit(name: str) -> dict[str, Any]:
        count = len(list(tmp_path.glob("repository-*")))
        return doors.create(**recorded(name, tmp_path / f"repository-{count}"))

    return submit
