"""apply_patch: a unified diff over several files, all of it or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Annotated, Final

from pydantic import Field

from orchestrator.core.workspace import WorkspaceRefusal
from orchestrator.engine.patches import FilePatch, PatchRefused, apply, parse
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.tool import Arguments, Risk, Tool, ToolContext

LONGEST_PATCH: Final = 1_000_000
MOST_FILES: Final = 200
MOST_TEXT: Final = 32 * 1024**2
"""Characters of all its files, before and after: they are held until all is written."""

Undo = Callable[[], None]


class ApplyPatch(Arguments):
    patch: Annotated[
        str,
        Field(
            min_length=1,
            max_length=LONGEST_PATCH,
            description=(
                "A unified diff as git writes it: '--- a/path', '+++ b/path' (/dev/null where a file is "
                "new or goes), '@@ -line,count +line,count @@', then lines that begin with ' ', '-' or '+'."
            ),
        ),
    ]


def _apply(workspace: Workspace, asked: ApplyPatch, _: ToolContext) -> ToolResult:
    try:
        files = parse(asked.patch, MOST_FILES)
        texts = _new_texts(workspace, files)
    except PatchRefused as refusal:
        return ToolResult(f"apply_patch changed nothing: {refusal}.", is_error=True)
    undo: list[Undo] = []
    try:
        for file, (before, after) in zip(files, texts, strict=True):
            undo += _carry_out(workspace, file, before, after)
    except WorkspaceRefusal as refusal:
        _undo(undo)
        return ToolResult(f"apply_patch changed nothing: {refusal}", is_error=True)
    return ToolResult("\n".join(["Applied the patch:", *(_told(file) for file in files)]))


def _new_texts(workspace: Workspace, files: Sequence[FilePatch]) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    left = MOST_TEXT
    for file in files:
        texts.append(_new_text(workspace, file))
        left -= sum(map(len, texts[-1]))
        if left < 0:
            raise PatchRefused(f"its files have more than {MOST_TEXT:,} characters; patch fewer at once")
    return texts


def _new_text(workspace: Workspace, file: FilePatch) -> tuple[str, str]:
    """The file's text before and after; nothing is written yet."""
    try:
        if file.new is not None and file.new != file.old and workspace.has(file.new):
            raise PatchRefused(f"{file.new} exists already")
        before = "" if file.old is None else workspace.read(file.old, None, None)
    except WorkspaceRefusal as refusal:
        raise PatchRefused(str(refusal)) from refusal
    try:
        after = apply(before, file.hunks)
    except PatchRefused as refusal:
        raise PatchRefused(f"{file.old or file.new}: {refusal}") from refusal
    if file.new is None and after:
        raise PatchRefused(f"{file.old} would be deleted, but the patch does not remove all of its lines")
    return before, after


def _carry_out(workspace: Workspace, file: FilePatch, before: str, after: str) -> list[Undo]:
    """What takes it back, the last first."""
    old, new = file.old, file.new
    if old is None and new is not None:
        workspace.write(new, after)
        return [lambda: workspace.delete(new)]
    if old is not None and new is None:
        workspace.delete(old)
        return [lambda: workspace.write(old, before)]
    if old is None or new is None:
        return []
    undo: list[Undo] = []
    if old != new:
        workspace.move(old, new)
        undo.append(lambda: workspace.move(new, old))
    if after != before:
        try:
            workspace.write(new, after)
        except WorkspaceRefusal:
            _undo(undo)
            raise
        undo.append(lambda: workspace.write(new, before))
    return undo


def _undo(undo: Sequence[Undo]) -> None:
    for step in reversed(undo):
        with contextlib.suppress(WorkspaceRefusal):
            step()


def _told(file: FilePatch) -> str:
    if file.old is None:
        return f"- made {file.new}"
    if file.new is None:
        return f"- deleted {file.old}"
    return f"- changed {file.new}" if file.old == file.new else f"- moved {file.old} to {file.new}"


APPLY_PATCH: Final = Tool(
    name="apply_patch",
    description=(
        "Applies a unified diff, to several files at once if need be: all of it, or nothing when one hunk "
        "does not fit. Lines to remove and context must be exactly as in the files; modes are not changed."
    ),
    arguments=ApplyPatch,
    risk=Risk.WRITE,
    changes_files=True,
    carry_out=_apply,
)
