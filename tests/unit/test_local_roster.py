from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from orchestrator.local import roster
from orchestrator.local.processes import Identity
from orchestrator.local.roster import Entry, Roster

if TYPE_CHECKING:
    from pathlib import Path


def _entry() -> Entry:
    return Entry("api", "api", "running", 7, "boot/9", 1.5, 0, "/logs/api.log", 8000, 15, 40)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = Roster("id", Identity(1, "boot/2"), (_entry(),), {"api": 8000}, {"api": "http://x"}, ("/gone",))
    roster.write(tmp_path, written)
    assert roster.read(tmp_path) == written


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stack": "x"}', '{"stack": 1, "supervisor": {"pid": 1}}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    assert roster.read(tmp_path) is None


def test_nothing_is_ended_by_a_pid_whose_process_is_another_one() -> None:
    victim = Entry("api", "api", "running", os.getpid(), "boot/0", 1.5, 0, "", None, 9, 40)
    assert roster.sweep(Roster("no such mark", Identity(1, "boot/0"), (victim,))) == 0
