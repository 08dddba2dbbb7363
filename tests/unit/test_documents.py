"""What the documentation says is what the code does, as far as a program can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.cli.codes import ExitCode
from tests.documents import PAGES, REFERENCE

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES_OF_FOLDERS = [path for path in DOCS if path.parent.name != "decisions"]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
ERRORS = {
    "Broke": 0,
    "Conflict": 0,
    "Denied": 0,
    "ModelError": 1,
    "OrchestratorError": 0,
    "Refused": 0,
    "Unavailable": 0,
    "Unknown": 0,
    "WorkspaceFault": 0,
    "_Meaning": 1,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_from_the_code_is_what_the_code_makes_now(name: str) -> None:
    written = (REFERENCE / name).read_text("utf-8")
    assert written == PAGES[name](), "write it anew: .venv/bin/python -m tests.documents"


@pytest.mark.parametrize("path", [*DOCS, ROOT / "README.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    targets = [found for found in LINK.findall(path.read_text("utf-8")) if "://" not in found]
    missing = [found for found in targets if not _leads(path, found)]
    assert missing == []


def _leads(path: Path, target: str) -> bool:
    file, _, anchor = target.partition("#")
    there = (path.parent / file) if file else path
    if not there.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE) if anchor else []
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return not anchor or anchor in slugs


@pytest.mark.parametrize("path", PAGES_OF_FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_is_a_dead_end(path: Path) -> None:
    last = path.read_text("utf-8").rstrip().splitlines()[-1]
    assert last.startswith("Next: ")
    assert LINK.search(last)


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        found = LINK.findall(page.read_text("utf-8")) if page.suffix == ".md" else []
        linked = {(page.parent / one.partition("#")[0]).resolve() for one in found if "://" not in one}
        waiting += [one for one in linked if one.suffix == ".md" and one not in seen]
    assert set(DOCS) - seen == set()


def test_every_exit_code_is_documented() -> None:
    text = (REFERENCE / "exit-codes.md").read_text("utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == sorted(ExitCode)


def test_every_code_that_is_raised_is_explained() -> None:
    unexplained = {code: where for code, where in raised() if code not in EXPLANATIONS}
    assert unexplained == {}


def test_every_explanation_is_of_a_code_that_occurs() -> None:
    text = "\n".join(path.read_text("utf-8") for path in sources() if path.name != "explanations.py")
    unused = [code for code in EXPLANATIONS if f'"{code}"' not in text and not _composed(code, text)]
    assert unused == []


def _composed(code: str, text: str) -> bool:
    """`limit-turns` is put together from `f"limit-{limit}"` and `"turns"`."""
    head, _, rest = code.partition("-")
    return f'f"{head}-{{' in text and f'"{rest}"' in text


def sources() -> Iterator[Path]:
    return (path for path in sorted((ROOT / "orchestrator").rglob("*.py")) if "samples" not in path.parts)


def raised() -> Iterator[tuple[str, str]]:
    """Code and place of every error that is made with a constant code."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and (code := _code(node)):
                yield code, f"{path.relative_to(ROOT)}:{node.lineno}"


def _code(call: ast.Call) -> str | None:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name == "__init__":
        place = 0
    elif name in ERRORS:
        place = ERRORS[name]
    else:
        return None
    given = call.args[place] if len(call.args) > place else None
    if (
        isinstance(given, ast.Constant)
        and isinstance(given.value, str)
        and re.fullmatch(r"[a-z-]+", given.value)
    ):
        return given.value
    return None
