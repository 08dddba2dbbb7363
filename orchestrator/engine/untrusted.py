"""Text from outside: made storable, cut to a size, and marked with where it came from."""

from __future__ import annotations

import math
from typing import Any, Final

from orchestrator.core.redaction import last_word_end, next_word_start

RESULT_CHARACTERS: Final = 30_000
"""The most of one tool's output that the model gets to read."""

SHORT_CHARACTERS: Final = 400
"""What is sent of an old output, once room is needed."""


def storable(text: str) -> str:
    """Without NUL and lone surrogates, which neither Postgres nor UTF-8 can hold."""
    if text.isascii():
        return text.replace("\0", "\ufffd")
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


DEEPEST: Final = 100
"""Lists and objects within each other: what reads JSON here and elsewhere goes down by recursion."""


def storable_json(value: Any, deepest: int = DEEPEST) -> Any:
    """As `storable`, for all in it. Raises ValueError for what is nested too deep, and for numbers that JSON
    doesn't know."""
    match value:
        case str():
            return storable(value)
        case dict() | list() if deepest == 0:
            raise ValueError("nested too deep")
        case dict():
            return {storable(key): storable_json(item, deepest - 1) for key, item in value.items()}
        case list():
            return [storable_json(item, deepest - 1) for item in value]
        case float() if not math.isfinite(value):
            raise ValueError("not a number of JSON")
    return value


def cut(text: str, limit: int = RESULT_CHARACTERS) -> str:
    """About `limit` characters: the first third and the last two, since what matters often comes last. No
    word is cut in two."""
    if len(text) <= limit:
        return text
    head = last_word_end(text, limit // 3)
    tail = next_word_start(text, len(text) - (limit - limit // 3))
    return f"{text[:head]}\n[… {tail - head:,} characters left out …]\n{text[tail:]}"


def shortened(text: str, call_id: str) -> str:
    """An old output as it is sent on: its beginning, and where the rest is."""
    if len(text) <= SHORT_CHARACTERS * 2:
        return text
    head = text[:SHORT_CHARACTERS]
    if head.rfind("<untrusted ") > head.rfind("</untrusted>"):
        head += "\n</untrusted>"
    return (
        f"{head}\n[an old output of {len(text):,} characters, shown in short; "
        f"read_output shows all of it, call_id {call_id}]"
    )


def marked(source: str, text: str) -> str:
    """`text` between tags that name its source; a closing tag inside the text is made harmless."""
    label = storable(" ".join(source.replace('"', "'").split()))
    inner = storable(text).replace("</untrusted", "<\\/untrusted")
    return f'<untrusted source="{label}">\n{inner}{"" if inner.endswith(chr(10)) else chr(10)}</untrusted>'
