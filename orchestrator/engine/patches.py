"""Unified diffs, as git and diff write them and models imitate them: read strictly, applied exactly or not.

Two liberties only, since what a hunk says must be there is always checked: wrong or missing counts after `@@`
are tolerated, and a hunk whose lines are elsewhere than it says goes where they occur exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

NOWHERE: Final = "/dev/null"
_HUNK: Final = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+\d+(?:,(\d{1,9}))? @@")
_LEFT_OUT: Final = ("GIT binary patch", "Binary files ")
_SHOWN: Final = 120


class PatchRefused(Exception):
    """The patch can't be read, or doesn't fit; the text is for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines to find, and lines to put in their place, each with its newline."""

    old: str
    new: str
    line: int | None
    """Where `old` begins, from 1; for an empty `old` the line after which `new` belongs (0: the top)."""


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What becomes of one file. `old` None: it is new; `new` None: it is deleted; both differ: renamed."""

    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...] = ()


def parse(text: str, most_files: int) -> list[FilePatch]:
    """All files of a patch, each once. Raises `PatchRefused`."""
    files = _Reader(text.split("\n")).files()
    if len(files) > most_files:
        raise PatchRefused(f"it changes {len(files)} files, at most {most_files} at once")
    if not files:
        raise PatchRefused("it names no file; each begins with the lines '--- a/path' and '+++ b/path'")
    names = [name for file in files for name in {file.old, file.new} if name is not None]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PatchRefused(f"{twice[0]} occurs twice; put all hunks of a file under one header")
    return files


def apply(text: str, hunks: Sequence[Hunk]) -> str:
    """`text` with every hunk applied, in order. Raises `PatchRefused` when one of them doesn't fit."""
    pieces, cursor, drift = list[str](), 0, 0
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    for number, hunk in enumerate(hunks, 1):
        try:
            at = _place(text, starts, hunk, cursor, drift)
        except PatchRefused as refusal:
            raise PatchRefused(f"hunk {number} does not fit: {refusal}") from None
        if hunk.line is not None and hunk.old:
            drift = text.count("\n", 0, at) + 1 - hunk.line
        pieces += [text[cursor:at], hunk.new]
        cursor = at + len(hunk.old)
    return "".join(pieces) + text[cursor:]


def _place(text: str, starts: Sequence[int], hunk: Hunk, cursor: int, drift: int) -> int:
    """The index in `text`, at `cursor` or after it."""
    if not hunk.old:
        return _insertion(text, starts, hunk.line, cursor, drift)
    stated = None if hunk.line is None else hunk.line - 1 + drift
    if stated is not None and 0 <= stated < len(starts):
        at = starts[stated]
        if at >= cursor and text.startswith(hunk.old, at) and _ends_a_line(text, at, hunk.old):
            return at
    found = _occurrences(text, hunk.old, cursor)
    if len(found) == 1:
        return found[0]
    if found:
        raise PatchRefused("its lines occur more than once; give the right line numbers, or more context")
    raise PatchRefused(_difference(text, starts, hunk.old, stated))


def _insertion(text: str, starts: Sequence[int], line: int | None, cursor: int, drift: int) -> int:
    if line is None and text:
        raise PatchRefused("it only adds and says not where; give some lines around them as context")
    at = (line or 0) + drift
    if not 0 <= at < len(starts) or starts[at] < cursor:
        raise PatchRefused(f"there is no line {line} to add after")
    if starts[at] == len(text) and text and not text.endswith("\n"):
        raise PatchRefused("the last line of the file has no newline; give it as context")
    return starts[at]


def _occurrences(text: str, old: str, cursor: int) -> list[int]:
    """The first two places where `old` stands as whole lines; linear, whatever the text."""
    found: list[int] = []
    if not old.endswith("\n"):
        at = len(text) - len(old)
        return [at] if at >= cursor and text.endswith(old) and (at == 0 or text[at - 1] == "\n") else []
    if text.startswith(old, cursor) and (cursor == 0 or text[cursor - 1] == "\n"):
        found.append(cursor)
    at = text.find(f"\n{old}", cursor)
    while at >= 0 and len(found) < 2:  # noqa: PLR2004 - one is the place, two are too many
        found.append(at + 1)
        at = text.find(f"\n{old}", at + 1)
    return found


def _ends_a_line(text: str, at: int, old: str) -> bool:
    return old.endswith("\n") or at + len(old) == len(text)


def _difference(text: str, starts: Sequence[int], old: str, stated: int | None) -> str:
    """Where the file and the hunk part, in words."""
    if "\r\n" in text and "\r" not in old:
        return "the lines of the file end in \\r\\n, those of the patch in \\n"
    if old == f"{text[len(text) - len(old) + 1 :]}\n":
        return "the last line of the file has no newline; add the line '\\ No newline at end of file'"
    if stated is None or not 0 <= stated < len(starts):
        return f"its lines are not in the file, which has {len(starts)}; the first is {_quoted(old)}"
    for number, wanted in enumerate(old.splitlines(keepends=True), stated):
        at = starts[number] if number < len(starts) else len(text)
        if not text.startswith(wanted, at):
            there = text[at:].partition("\n")[0] if at < len(text) else None
            has = "the file ends before it" if there is None else f"the file has {_quoted(there)}"
            return f"at line {number + 1} it wants {_quoted(wanted)}, {has}"
    return "its lines are not in the file after the hunk before it"


def _quoted(line: str) -> str:
    return repr(line.partition("\n")[0][:_SHOWN])


@dataclass(slots=True)
class _Body:
    """The lines of one hunk as they are gathered; `None` for a count that the header doesn't give."""

    left_old: int | None
    left_new: int | None
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    last: str = ""

    @property
    def is_full(self) -> bool:
        return (self.left_old, self.left_new) == (0, 0)

    def add(self, line: str) -> None:
        self.last, content = (line[:1] or " "), f"{line[1:]}\n"
        if self.last in " -":
            self.old.append(content)
            self.left_old = None if self.left_old is None else self.left_old - 1
        if self.last in " +":
            self.new.append(content)
            self.left_new = None if self.left_new is None else self.left_new - 1

    def end_without_newline(self) -> None:
        for side, lines in ((" -", self.old), (" +", self.new)):
            if self.last and self.last in side and lines:
                lines[-1] = lines[-1].removesuffix("\n")


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines[:-1] if lines[-1] == "" else lines
        self._at = 0
        self._heads_on: list[bool] = []
        """Of each line, whether a file's header or the end comes next, blank lines aside."""
        heads_on = True
        for line in reversed(self._lines):
            heads_on = line.startswith(("diff --git ", "--- ")) if line.strip() else heads_on
            self._heads_on.append(heads_on)
        self._heads_on.reverse()

    def files(self) -> list[FilePatch]:
        found: list[FilePatch] = []
        while self._at < len(self._lines):
            line = self._line()
            if line.startswith("diff --git "):
                found.append(self._git_file())
            elif self._is_file_header():
                found.append(self._file(None))
            elif not found or not line.strip():
                self._at += 1  # a message above the first file, blank lines between files
            elif line in ("--", "-- "):
                break  # the signature below a mailed patch
            else:
                raise PatchRefused(f"line {self._at + 1} belongs to no hunk: {_quoted(line)}")
        return found

    def _line(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._lines[at].removesuffix("\r") if at < len(self._lines) else ""

    def _is_file_header(self) -> bool:
        return self._line().startswith("--- ") and self._line(1).startswith("+++ ")

    def _git_file(self) -> FilePatch:
        """The header lines that only git writes; whatever else they say is looked up in the hunks."""
        self._at += 1
        said: dict[str, str] = {}
        while self._at < len(self._lines):
            line = self._line()
            if line.startswith(("diff --git ", "@@")) or not line.strip() or self._is_file_header():
                break
            if line.startswith(_LEFT_OUT):
                raise PatchRefused("it changes a binary file")
            for word in ("rename from ", "rename to ", "copy from ", "new file mode ", "deleted file mode "):
                if line.startswith(word):
                    said[word] = line.removeprefix(word)
            self._at += 1
        if "copy from " in said:
            raise PatchRefused("it copies a file, which is not supported: write the new file")
        renamed = (_named(said.get("rename from ", "")), _named(said.get("rename to ", "")))
        if all(renamed):
            named = self._is_file_header() and self._names() == renamed
            return self._file(renamed) if named else FilePatch(*renamed)
        if self._is_file_header():
            return self._file(None)
        raise PatchRefused("a 'diff --git' is followed by no '---' and '+++' lines and no rename")

    def _names(self) -> tuple[str | None, str | None]:
        return _path(self._line(), "a/"), _path(self._line(1), "b/")

    def _file(self, renamed: tuple[str | None, str | None] | None) -> FilePatch:
        old, new = self._names()
        self._at += 2
        hunks = []
        while self._line().startswith("@@"):
            hunks.append(self._hunk())
        if old is None and new is None:
            raise PatchRefused(f"both names of a file are {NOWHERE}")
        if renamed is None and old is not None and new is not None and old != new:
            raise PatchRefused(f"it names {old} and {new} for one file; move the file first, with move_file")
        if not hunks and renamed is None:
            raise PatchRefused(f"{new or old} has no hunk, which begins with '@@ -line,count +line,count @@'")
        return FilePatch(*(renamed or (old, new)), tuple(hunks))

    def _hunk(self) -> Hunk:
        at, header = self._at + 1, _HUNK.match(self._line())
        counts = [int(group or "1") for group in (header[2], header[3])] if header else [None, None]
        body = _Body(*counts)
        self._at += 1
        while self._at < len(self._lines) and not self._ends(body):
            line = self._lines[self._at]
            if line[:1] == "\\":
                body.end_without_newline()
            elif line in ("", "\r") or line[0] in " +-":
                body.add(line)
            else:
                raise PatchRefused(f"line {self._at + 1} begins with none of ' ', '+', '-': {_quoted(line)}")
            self._at += 1
        old, new = "".join(body.old), "".join(body.new)
        if old == new:
            raise PatchRefused(f"the hunk at line {at} of the patch changes nothing")
        return Hunk(old, new, int(header[1]) if header else None)

    def _ends(self, body: _Body) -> bool:
        """Whether the line here is no longer the hunk's. Its counts decide only where it could be both."""
        line = self._line()
        if line.startswith(("@@", "diff --git ")) or (body.is_full and line in ("--", "-- ")):
            return True
        if self._is_file_header():
            ends_here = (body.left_old, body.left_new) == (1, 1)
            more = (body.left_old or 0) > 0 and (body.left_new or 0) > 0
            return not ends_here and (not more or self._line(2).startswith("@@"))
        return not line.strip() and not line.startswith(" ") and self._only_blank_until_header(body)

    def _only_blank_until_header(self, body: _Body) -> bool:
        """Blank lines between files, or at the end, belong to nobody."""
        if (body.left_old or 0) > 0 and (body.left_new or 0) > 0:
            return False
        return self._heads_on[self._at]


def _path(line: str, prefix: str) -> str | None:
    name = line[4:].partition("\t")[0].strip()
    return None if name == NOWHERE else _named(name.removeprefix(prefix))


def _named(name: str) -> str:
    if name.startswith('"'):
        raise PatchRefused("names in quotation marks are not supported")
    return name
