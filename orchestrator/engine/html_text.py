"""The text of an HTML page, roughly as it reads. Linear in the page's length, whatever stands in it."""

from __future__ import annotations

import html
import re
from typing import Final

_UNREAD: Final = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "object"})
_BLOCKS: Final = re.compile(
    "address|article|aside|blockquote|br|d[dlt]|div|fieldset|figure|footer|form|h[1-6r]|header|li|main|nav|"
    "[ou]l|option|p|pre|section|t[dhr]|table|title"
)
_APART: Final = re.compile("h[1-6r]|[ou]l|p|pre|table")
_NAME: Final = re.compile(r"/?([a-zA-Z][a-zA-Z0-9-]{0,30})")
_HREF: Final = re.compile(r"""\shref\s*=\s*["']?(https?://[^\s"'>]{1,500})""", re.IGNORECASE)
_SPACES: Final = re.compile(r"[ \t\r\f\v\xa0]+")
_LINES: Final = re.compile(r" ?\n[ \n]*")
_LONGEST_TAG: Final = 5000


def text_of(page: str) -> str:
    """Markup, scripts and comments left out; the targets of links in brackets; a heading marked with #."""
    pieces, at = list[str](), 0
    while at < len(page):
        start = page.find("<", at)
        if start < 0:
            pieces.append(_words(page[at:]))
            break
        pieces.append(_words(page[at:start]))
        at = _behind(page, start, pieces)
    text = _SPACES.sub(" ", "".join(pieces))
    return _LINES.sub(_gap, text).strip()


def _behind(page: str, start: int, pieces: list[str]) -> int:
    """Where it goes on after what begins with '<' at `start`."""
    if page.startswith("<!--", start):
        end = page.find("-->", start + 4)
        return len(page) if end < 0 else end + 3
    named = _NAME.match(page, start + 1)
    if named is None and page[start + 1 : start + 2] not in ("!", "?", "/"):
        pieces.append("<")
        return start + 1
    end = page.find(">", start)
    if end < 0:
        return len(page)
    if named is None:
        return end + 1
    tag, name = page[start + 1 : min(end, start + _LONGEST_TAG)], named[1].lower()
    opens = tag[0] != "/"
    if opens and name in _UNREAD and not tag.endswith("/"):
        closing = re.compile(f"</{name}", re.IGNORECASE).search(page, end)
        return len(page) if closing is None else closing.start()
    if _BLOCKS.fullmatch(name):
        pieces.append("\n\n" if _APART.fullmatch(name) else "\n")
    if opens and re.fullmatch("h[1-6]", name):
        pieces.append("#" * int(name[1]) + " ")
    if opens and name == "li":
        pieces.append("- ")
    if opens and name == "a" and (href := _HREF.search(tag)):
        pieces.append(f"[{html.unescape(href[1])}] ")
    return end + 1


def _words(text: str) -> str:
    return html.unescape(text).replace("\n", " ")


def _gap(found: re.Match[str]) -> str:
    return "\n\n" if found[0].count("\n") > 1 else "\n"
