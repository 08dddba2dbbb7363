"""read_file, write_file, edit_file, move_file, delete_file, list_files."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from orchestrator.core.redaction import beginning
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.tool import Arguments, RelativePath, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS, cut, marked

LISTED_PATHS: Final = 500
"""The most paths that one list_files shows."""


LONGEST_TEXT: Final = 16 * 1024**2
"""Characters that a file may have after an edit: it is put together in memory."""


class ReadFile(Arguments):
    path: RelativePath
    start: Annotated[int | None, Field(ge=1, description="First line, from 1; left out: the first.")] = None
    end: Annotated[int | None, Field(ge=1, description="Last line, included; left out: the last.")] = None


def _read(workspace: Workspace, asked: ReadFile, _: ToolContext) -> ToolResult:
    if asked.start and asked.end and asked.end < asked.start:
        return ToolResult(f"read_file refused: end {asked.end} is before start {asked.start}", is_error=True)
    text = workspace.read(asked.path, asked.start, asked.end)
    source = f"file {asked.path}" + (f" from line {asked.start}" if asked.start else "")
    if len(text) <= RESULT_CHARACTERS:
        return ToolResult(marked(source, text))
    shown = text[: text.rfind("\n", 0, RESULT_CHARACTERS) + 1] or beginning(text, RESULT_CHARACTERS)
    following = (asked.start or 1) + shown.count("\n")
    left_out = len(text) - len(shown)
    return ToolResult(
        f"{marked(source, shown)}\n{left_out:,} characters left out; go on with start={following}."
    )


READ_FILE: Final = Tool(
    name="read_file",
    description=f"Reads a text file or some lines of it, at most {RESULT_CHARACTERS:,} characters at a time.",
    arguments=ReadFile,
    risk=Risk.READ,
    changes_files=False,
    carry_out=_read,
)


class WriteFile(Arguments):
    path: RelativePath
    content: Annotated[str, Field(description="The whole new content.")]


def _write(workspace: Workspace, asked: WriteFile, _: ToolContext) -> ToolResult:
    workspace.write(asked.path, asked.content)
    return ToolResult(f"Wrote {asked.path} ({len(asked.content):,} characters).")


WRITE_FILE: Final = Tool(
    name="write_file",
    description="Makes a text file, or replaces the whole of one. To change a part, use edit_file.",
    arguments=WriteFile,
    risk=Risk.WRITE,
    changes_files=True,
    carry_out=_write,
)


class EditFile(Arguments):
    path: RelativePath
    old: Annotated[str, Field(min_length=1, description="The text to replace, exactly as it is in the file.")]
    new: Annotated[str, Field(description="What to put in its place.")]
    every: Annotated[bool, Field(description="Replace every occurrence; else there must be exactly one.")] = (
        False
    )


def _edit(workspace: Workspace, asked: EditFile, _: ToolContext) -> ToolResult:
    text = workspace.read(asked.path, None, None)
    found = text.count(asked.old)
    if fault := _edit_fault(text, asked, found):
        return ToolResult(f"edit_file changed nothing in {asked.path}: {fault}", is_error=True)
    workspace.write(asked.path, text.replace(asked.old, asked.new))
    places = "1 place" if found == 1 else f"{found} places"
    return ToolResult(f"Edited {asked.path} in {places}.")


def _edit_fault(text: str, asked: EditFile, found: int) -> str | None:
    if asked.old == asked.new:
        return "old and new are the same."
    if found == 0 and asked.old.replace("\n", "\r\n") in text:
        return "its lines end in \\r\\n; write old and new with \\r\\n."
    if found == 0:
        return "old does not occur in it. Read the file and copy the text exactly, white space included."
    if found > 1 and not asked.every:
        return f"old occurs {found} times. Give more of the text around it, or set every."
    if len(text) + found * (len(asked.new) - len(asked.old)) > LONGEST_TEXT:
        return f"old occurs {found:,} times, and with new in its place the file would be too long."
    return None


EDIT_FILE: Final = Tool(
    name="edit_file",
    description="Replaces an exact piece of text in a file.",
    arguments=EditFile,
    risk=Risk.WRITE,
    changes_files=True,
    carry_out=_edit,
)


class MoveFile(Arguments):
    path: RelativePath
    to: Annotated[RelativePath, Field(description="Where it is to be; nothing may be there yet.")]


def _move(workspace: Workspace, asked: MoveFile, _: ToolContext) -> ToolResult:
    workspace.move(asked.path, asked.to)
    return ToolResult(f"Moved {asked.path} to {asked.to}.")


MOVE_FILE: Final = Tool(
    name="move_file",
    description="Moves or renames a file or a folder.",
    arguments=MoveFile,
    risk=Risk.WRITE,
    changes_files=True,
    carry_out=_move,
)


class DeleteFile(Arguments):
    path: RelativePath


def _delete(workspace: Workspace, asked: DeleteFile, _: ToolContext) -> ToolResult:
    workspace.delete(asked.path)
    return ToolResult(f"Deleted {asked.path}.")


DELETE_FILE: Final = Tool(
    name="delete_file",
    description="Deletes one file.",
    arguments=DeleteFile,
    risk=Risk.WRITE,
    changes_files=True,
    carry_out=_delete,
)


class ListFiles(Arguments):
    path: RelativePath = "."
    depth: Annotated[int, Field(ge=1, le=20, description="How many levels of folders to show.")] = 2


def _list(workspace: Workspace, asked: ListFiles, _: ToolContext) -> ToolResult:
    paths = sorted(workspace.list(asked.path, asked.depth))
    text = marked(f"list of {asked.path}", cut("\n".join(paths[:LISTED_PATHS])) or "(empty)")
    if len(paths) > LISTED_PATHS:
        text += f"\n{len(paths) - LISTED_PATHS:,} more left out; list a folder below."
    return ToolResult(text)


LIST_FILES: Final = Tool(
    name="list_files",
    description=f"Lists files and folders (these end in '/'), at most {LISTED_PATHS}.",
    arguments=ListFiles,
    risk=Risk.READ,
    changes_files=False,
    carry_out=_list,
)
