"""A merge moves the reference before its COMMIT; what was not committed is taken back from the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator import bootstrap
from orchestrator.bootstrap import Wiring
from orchestrator.config import Settings
from orchestrator.db import connect, upgrade
from orchestrator.tasks.branches import follow_rows
from orchestrator.workspaces.mirrors import Built
from tests.integration.repositories import commit, repository

TASK = "t-1"


@dataclass
class Place:
    wiring: Wiring
    source: Path
    mirror: str

    def branch_is_at(self, sha: str) -> None:
        git = self.wiring.workspaces.mirrors.git(self.mirror)
        git.run("update-ref", f"refs/heads/agent/{TASK}", sha)

    def row_says(self, tip: str | None, *, ended: bool) -> None:
        with self.wiring.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO tasks (tenant_id, id, root_id, title, description, tip_commit, status,"
                    " finished_at) VALUES ('default', :task, :task, 'a', 'a', :tip, :status,"
                    " CASE WHEN :ended THEN now() END)"
                ),
                {"task": TASK, "tip": tip, "ended": ended, "status": "cancelled" if ended else "running"},
            )

    @property
    def built(self) -> list[Built]:
        return self.wiring.workspaces.mirrors.built()


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Place:
    engine = connect.create(database_url, application="test")
    upgrade.upgrade(engine)
    engine.dispose()
    settings = Settings(data_dir=tmp_path / "data", database_url=database_url)
    wiring = bootstrap.load("test", settings)
    source = repository(tmp_path / "source", {"a.txt": "one\n"})
    base = wiring.workspaces.fetch(str(source), None)
    return Place(wiring, source, base.mirror)


def two_commits(place: Place) -> tuple[str, str]:
    first = place.wiring.workspaces.fetch(str(place.source), None).commit
    commit(place.source, {"a.txt": "two\n"})
    return first, place.wiring.workspaces.fetch(str(place.source), None).commit


def test_a_branch_that_is_ahead_of_its_ended_task_goes_back(place: Place) -> None:
    committed, lost = two_commits(place)
    place.branch_is_at(lost)
    place.row_says(committed, ended=True)
    assert follow_rows(place.wiring) == 1
    assert place.built == [Built(place.mirror, TASK, committed)]
    assert follow_rows(place.wiring) == 0


def test_a_branch_of_an_ended_task_without_commits_is_deleted(place: Place) -> None:
    _, lost = two_commits(place)
    place.branch_is_at(lost)
    place.row_says(None, ended=True)
    assert follow_rows(place.wiring) == 1
    assert place.built == []


def test_the_branch_of_a_task_that_goes_on_is_left_alone(place: Place) -> None:
    committed, under_way = two_commits(place)
    place.branch_is_at(under_way)
    place.row_says(committed, ended=False)
    assert follow_rows(place.wiring) == 0
    assert place.built == [Built(place.mirror, TASK, under_way)]


def test_a_branch_that_moved_meanwhile_is_not_moved_again(place: Place) -> None:
    committed, lost = two_commits(place)
    place.branch_is_at(lost)
    (seen,) = place.built
    place.branch_is_at(committed)
    with pytest.raises(Exception, match=lost[:7]):
        place.wiring.workspaces.mirrors.rebuild(seen, None)
    assert place.built == [Built(place.mirror, TASK, committed)]
