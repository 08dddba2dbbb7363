"""A task on a package that nobody here wrote: `python -m tests.acceptance.real_package celery-5.7.0.tar.gz`.

Takes celery's source distribution, makes a git repository of it, and runs a task of five steps, two of them
parallel, that add a function to `celery/utils/text.py`, document another, test both and run that module's own
tests. Real: workers, servers, sandbox, git, tools, tests. The agent's calls alone are written beforehand.
Then it measures how long a checkout takes beside a plain clone. Exit 1 if anything isn't as it should be.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from orchestrator.bootstrap import Wiring
from orchestrator.commands import request, submit
from orchestrator.queries.reading import snapshot
from orchestrator.queries.task import TaskDetail, task
from orchestrator.tasks.publish import perform
from tests.benchmarks.installation import WORKER_APP, installed
from tests.benchmarks.rounds import await_ended
from tests.integration.repositories import git, installation, owner

TASK: Final = "task_real_package"
MODULE: Final = "celery/utils/text.py"
TESTS: Final = "t/unit/utils/test_text.py"
TIMES: Final = 7
_SOURCE: Final = """def pluralize(n: float, text: str, suffix: str = 's') -> str:
"""
_SQUEEZE: Final = '''def squeeze(s: str) -> str:
    """Replace each run of white space by one blank, and strip the ends."""
    return ' '.join(s.split())


'''
_MATCH_CASE: Final = "def match_case(s: str, other: str) -> str:\n"
_IMPORT: Final = "from celery.utils.text import (abbr,"
_NEW_TESTS: Final = """

@pytest.mark.parametrize('s,expected', [
    ('  a \\t b\\n\\nc ', 'a b c'),
    ('', ''),
])
def test_squeeze(s, expected):
    assert squeeze(s) == expected


def test_match_case():
    assert match_case('Word', 'LOUD') == 'WORD'
    assert match_case('Word', 'quiet') == 'word'
"""
ADDED: Final = 3
"""Tests that the task adds."""


def steps(last_lines: str) -> list[dict[str, Any]]:
    """`last_lines` is how the file of tests ends now."""
    run = ("run_command", {"command": f"python -m pytest -q -p no:cacheprovider {TESTS}"})
    ours = "import os, celery; assert celery.__file__.startswith(os.getcwd() + '/'), celery.__file__"
    where = ("run_command", {"command": f'python -c "{ours}"'})
    described = f'{_MATCH_CASE}    """Return s in upper case if other is, else in lower case."""\n'

    def edit(path: str, old: str, new: str) -> tuple[str, dict[str, str]]:
        return "edit_file", {"path": path, "old": old, "new": new}

    def step(key: str, needs: list[str], *calls: tuple[str, dict[str, str]]) -> dict[str, Any]:
        return {"id": key, "description": key, "needs": needs, "spec": {"calls": calls}}

    return [
        step("look", [], ("read_file", {"path": MODULE}), ("read_file", {"path": TESTS}), where, run),
        step("add", ["look"], edit(MODULE, _SOURCE, _SQUEEZE + _SOURCE), run),
        step("describe", ["look"], edit(MODULE, _MATCH_CASE, described), run),
        step(
            "test",
            ["add", "describe"],
            edit(TESTS, _IMPORT, f"{_IMPORT} match_case, squeeze,"),
            edit(TESTS, last_lines, last_lines + _NEW_TESTS),
            run,
        ),
        step("verify", ["test"], where, run),
    ]


def unpacked(archive: Path, folder: Path) -> Path:
    """The distribution as a git repository of one commit."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    [repository] = folder.iterdir()
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A", "-f")
    git(repository, "commit", "-q", "-m", "As it was distributed")
    return repository


def carried_out(repository: Path) -> tuple[TaskDetail, Path, str]:
    """The ended task, a clone of its branch, and how its commands were contained."""
    tests = (repository / TESTS).read_text()
    plan = steps(tests[tests.rindex("def test_") :])
    with installed(strict_sandbox="true" if shutil.which("bwrap") else "false") as here:
        wiring = here.wiring("real-package")
        worker = here.worker("worker", slots=2)
        ours = tuple("tests.acceptance.real_worker" if word == WORKER_APP else word for word in worker.argv)
        here.run(replace(worker, argv=ours))
        _send(wiring, repository, plan)
        await_ended(wiring, TASK, 1)
        with snapshot(wiring.engine) as connection:
            detail = task(connection, wiring.tenant_id, TASK)
        clone = repository.parent.parent / "branch"
        if detail.branch:
            [mirror] = (here.data / "mirrors").glob("*.git")
            git(repository, "clone", "-q", "-b", detail.branch, str(mirror), str(clone))
        warning = wiring.workspaces.sandbox.warning
        wiring.engine.dispose()
        return detail, clone, warning or "bubblewrap"


def _send(wiring: Wiring, repository: Path, plan: list[dict[str, Any]]) -> None:
    wanted = request.parse(
        {"description": "Work on text.py", "repository": {"path": str(repository)}, "steps": plan}
    )
    perform(
        wiring,
        lambda connection: submit.submit(
            connection,
            wanted,
            policy=wiring.policy,
            tenant_id=wiring.tenant_id,
            task_id=TASK,
            created_by="real-package",
            now=wiring.clock(),
        ),
    )


def faults(detail: TaskDetail, clone: Path) -> list[str]:
    """What isn't as it should be."""
    if detail.status != "completed":
        errors = [f"{step.key}: {step.error}" for step in detail.steps if step.error]
        return [f"the task ended as {detail.status}: {detail.outcome}", *errors]
    found = []
    passed = {step.key: _passed(step.summary or "") for step in detail.steps}
    was = passed["look"]
    if not was or passed["verify"] != was + ADDED or passed["test"] != was + ADDED:
        found.append(f"the package's tests: {passed}")
    log = git(
        clone, "log", "--format=%P|%(trailers:key=Step,valueonly,separator=%x2C)", f"{detail.base_commit}.."
    )
    commits = [line.split("|") for line in log.splitlines()]
    changed = {step.id for step in detail.steps if step.commit and step.key in {"add", "describe", "test"}}
    if any(len(parents.split()) != 1 for parents, _ in commits):
        found.append("the branch is not linear")
    if len(commits) != len(changed) or {step for _, step in commits} != changed:
        found.append(f"not one commit for each step that changed files: {commits}")
    files = git(clone, "diff", "--name-only", f"{detail.base_commit}..").split()
    if sorted(files) != sorted([MODULE, TESTS]):
        found.append(f"the branch changes {files}")
    again = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if again.returncode or _passed(again.stdout) != was + ADDED:
        found.append(f"the tests of a clone of the branch: {again.stdout[-500:]}{again.stderr[-500:]}")
    if dirt := git(clone, "status", "--porcelain"):
        found.append(f"the branch is not clean: {dirt}")
    return found


def _passed(said: str) -> int:
    match = re.search(r"(\d+) passed", said)
    return int(match[1]) if match and "failed" not in said and "error" not in said else 0


def _milliseconds(work: Callable[[int], object]) -> float:
    taken = []
    for number in range(TIMES):
        began = time.perf_counter()
        work(number)
        taken.append((time.perf_counter() - began) * 1000)
    return median(taken)


def checkouts(repository: Path, folder: Path) -> dict[str, float]:
    """Medians in milliseconds: our checkout from a mirror that is there, and two kinds of plain clone."""
    workspaces = installation(folder / "workspaces")
    began = time.perf_counter()
    base = workspaces.fetch(str(repository), None)
    mirror = workspaces.mirrors.prepare(str(repository), base.commit)
    first = (time.perf_counter() - began) * 1000
    (folder / "clones").mkdir()

    def clone(kind: str, source: str) -> Callable[[int], object]:
        return lambda number: git(folder, "clone", "-q", source, str(folder / "clones" / f"{kind}-{number}"))

    return {
        "ready checkout, from the mirror": _milliseconds(
            lambda number: workspaces.open(owner(f"step-{number}"), mirror, base.commit)
        ),
        "plain git clone, hard links": _milliseconds(clone("linked", str(repository))),
        "plain git clone, over a transport": _milliseconds(clone("sent", repository.as_uri())),
        "once: the mirror's first fetch": first,
    }


def main(archive: Path) -> int:
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-real-"))
    try:
        (folder / "source").mkdir()
        repository = unpacked(archive, folder / "source")
        count = len(git(repository, "ls-files").splitlines())
        began = time.monotonic()
        detail, clone, contained = carried_out(repository)
        whole = time.monotonic() - began
        found = faults(detail, clone)
        print(f"{repository.name}: {count} files; commands contained by: {contained}")
        print(f"task {detail.status} in {_seconds(detail):.1f} s ({whole:.1f} s with servers)\n")
        print(f"{'step':<10}{'needs':<16}{'status':<11}{'seconds':>8}  what its last command said")
        for step in detail.steps:
            needs = ", ".join(step.needs)
            print(f"{step.key:<10}{needs:<16}{step.status:<11}{_seconds(step):>8.1f}  {step.summary}")
        starts = {step.key: step for step in detail.steps}
        print(f"\nadd and describe ran at the same time: {_overlap(starts['add'], starts['describe'])}")
        print(f"branch {detail.branch}, base {str(detail.base_commit)[:12]}, tip {str(detail.commit)[:12]}")
        if clone.exists():
            print(git(clone, "diff", "--stat", f"{detail.base_commit}.."))
        print(f"\nmedian of {TIMES}, in milliseconds")
        for what, taken in checkouts(repository, folder).items():
            print(f"  {what:<36}{taken:8.1f}")
        for fault in found:
            print(f"NOT AS IT SHOULD BE: {fault}")
        print("\nall as it should be" if not found else "")
        return 1 if found else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seconds(timed: Any) -> float:
    if timed.started_at is None or timed.finished_at is None:
        return 0.0
    return float((timed.finished_at - timed.started_at).total_seconds())


def _overlap(one: Any, other: Any) -> str:
    if None in {one.started_at, one.finished_at, other.started_at, other.finished_at}:
        return "no"
    return "yes" if max(one.started_at, other.started_at) < min(one.finished_at, other.finished_at) else "no"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
