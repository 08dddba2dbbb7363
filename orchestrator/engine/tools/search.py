"""search_files."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

from pydantic import Field

from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.output import told
from orchestrator.engine.tools.tool import Arguments, Line, RelativePath, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import cut

SHOWN_MATCHES: Final = 200
LINE_CHARACTERS: Final = 300


class SearchFiles(Arguments):
    pattern: Annotated[Line, Field(description="A regular expression.")]
    path: RelativePath = "."
    glob: Annotated[Line | None, Field(description="Only files whose name matches, e.g. *.py")] = None


def _search(workspace: Workspace, asked: SearchFiles, context: ToolContext) -> ToolResult:
    found = workspace.search(asked.pattern, asked.path, asked.glob)
    matches = sorted(found, key=lambda match: (match.path, match.line))
    if not matches:
        return ToolResult("Nothing matches.")
    lines = [f"{m.path}:{m.line}: {cut(m.text, LINE_CHARACTERS)}" for m in matches[:SHOWN_MATCHES]]
    result = told(context, "", f"search in {asked.path}", "\n".join(lines))
    if len(matches) > SHOWN_MATCHES:
        more = f"\n{len(matches) - SHOWN_MATCHES:,} more matches left out; search more narrowly."
        return replace(result, text=result.text + more)
    return result


SEARCH_FILES: Final = Tool(
    name="search_files",
    description=f"Searches text files by line; shows at most {SHOWN_MATCHES} matches as path:line: text.",
    arguments=SearchFiles,
    risk=Risk.READ,
    changes_files=False,
    carry_out=_search,
)
