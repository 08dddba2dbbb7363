"""A short run of `scripts/chaos`: the long ones are run by hand, with other seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.benchmarks.installation import REPOSITORY

pytestmark = pytest.mark.timeout(400)


def chaos(*words: str) -> tuple[int, dict[str, Any]]:
    """As people run it: a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.chaos", "--json", *words],
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def test_nothing_is_lost_or_done_twice_while_everything_is_killed_stopped_and_flushed() -> None:
    code, report = chaos("--seed", "11", "--steps", "60")
    assert not report["violations"], json.dumps(report, indent=1)
    assert code == 0
    assert sum(report["faults"].values()) >= 5
    assert sum(count for end, count in report["ends"].items() if "subtask" not in end) == 60
    assert report["ends"].get("subtask completed", 0) > 0


def test_without_the_fence_the_same_harness_finds_writes_of_those_who_lost_their_lease() -> None:
    # Whether a zombie gets to write depends on time as well as on the seed: a run may have none.
    for seed in ("5", "6", "7"):
        code, report = chaos("--seed", seed, "--steps", "12", "--no-fence")
        if "I3 no write by a lost fence" in {one["invariant"] for one in report["violations"]}:
            assert code == 1
            return
    raise AssertionError("three runs without the fence, and no write by a lost one")
