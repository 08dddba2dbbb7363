"""`orchestrator demo`, as a newcomer runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.local import postgres, processes
from tests.acceptance.running import Doors, Program, up

READY_SECONDS = 8.0
"""On two cores that do nothing else."""
SLOWER = 5
"""So much slower a machine may be that runs other tests meanwhile."""
MOST_MEGABYTES = 900

pytestmark = pytest.mark.timeout(300)


def test_the_demo_shows_a_real_task_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    demo = Program(("demo", "--ephemeral", "--no-flower", "--memory"), tmp_path)
    demo.until_said(" ready in ")
    folder = demo.data
    family = demo.family()
    assert len(demo.living()) >= 7
    assert demo.wait() == 0, demo.said
    said = demo.said
    assert "REPLAY" in said
    for shown in (
        "submitted as queued",
        "queued → running",
        "(workspace, attempt 1)",
        "$ python3 run_tests.py",
        "(really run)",
        "running → completed",
        "✓ completed in ",
        "Branch agent/task_",
        "+++ b/textstats/tokens.py",
        "pending → processing",
        "What to try next",
        " total ",
        "Stopped.",
    ):
        assert shown in said, shown
    ready, memory = re.search(r" ready in ([\d.]+) s", said), re.search(r" total +([\d.]+) MB", said)
    assert ready
    assert float(ready.group(1)) <= READY_SECONDS * SLOWER
    assert memory
    assert float(memory.group(1)) <= MOST_MEGABYTES
    assert "Traceback" not in said
    assert not [one for one in family if processes.alive(one)]
    assert demo.living() == []
    assert not folder.exists()
    assert not (tmp_path / "config").exists()


def test_ctrl_c_in_the_middle_leaves_no_process_and_the_next_start_finishes_the_task(tmp_path: Path) -> None:
    data = tmp_path / "data"
    try:
        demo = Program(("demo", "--data", str(data), "--no-flower"), tmp_path)
        demo.until_said(" turn 1 (replayed)")
        family = demo.family()
        assert demo.stop() == 130, demo.said
        assert "✓ completed in" not in demo.said
        assert "Traceback" not in demo.said
        assert not [one for one in family if processes.alive(one)]
        assert demo.living() == []
        with up(tmp_path, "--data", str(data), "--no-flower", "--workers", "1", sweep_every="PT1S") as (
            program,
            doors,
        ):
            [task] = doors.get("/tasks")["data"]
            assert task["id"] in demo.said
            _complete(doors, task["id"])
        assert program.living() == []
    finally:
        postgres.remove(data / "postgres")


def _complete(doors: Doors, task_id: str) -> None:
    done = doors.until_status(task_id, "completed")
    assert [step["status"] for step in done["steps"]] == ["completed"] * 5
    assert len(doors.commits(done)) == 3
