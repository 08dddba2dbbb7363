"""What a tool looks like when it is called in tags: the tags themselves, and what the values mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from orchestrator.engine.parsing.marks import Marks
from orchestrator.engine.untrusted import storable, storable_json

_NAME: Final = re.compile(r"[A-Za-z_][\w.:-]*", re.ASCII)
_FIRST_NEWLINE: Final = re.compile(r"\A\r?\n")


class Shape:
    """One tool; `parameters` are JSON schemas by name."""

    def __init__(self, name: str, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        self.name = name
        self.opening, self.closing = f"<{name}>", f"</{name}>"
        self.followers = [self.closing, *(f"<{parameter}>" for parameter in parameters)]
        """What may come next where no value is open."""
        self.parameters = tuple(parameters)
        self._readings = {parameter: _reading(schema) for parameter, schema in parameters.items()}
        self._marks: dict[str, Marks] = {}

    def marks(self, parameter: str) -> Marks:
        """What matters inside a value of this parameter."""
        if parameter not in self._marks:
            pairs: dict[str, Iterable[str]] = {
                self.closing: (),
                self.opening: self.followers,
                f"</{parameter}>": self.followers,
            }
            self._marks[parameter] = Marks(pairs)
        return self._marks[parameter]

    def value(self, parameter: str, written: str) -> Any:
        """Numbers, truth values, lists and objects are JSON, or else the text that they are: to refuse them
        is the tool's part. A newline right after the tag belongs to the tag; a text whose length is bounded
        is a short one, without the blanks around it; any other is taken as it stands, with its last newline.
        """
        return self._readings[parameter](written)

    def spelled(self, arguments: Mapping[str, Any]) -> str:
        """The call as the model would have written it."""
        return self.with_texts({name: self._text(name, value) for name, value in arguments.items()})

    def with_texts(self, texts: Mapping[str, str]) -> str:
        """The call with these texts between its tags."""
        values = (f"<{name}>{text}</{name}>" for name, text in texts.items())
        return "\n".join((self.opening, *values, self.closing))

    def _text(self, parameter: str, value: Any) -> str:
        if not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return f"\n{value}" if self._readings.get(parameter) is _as_it_stands else value


def shapes(tools: Iterable[Mapping[str, Any]]) -> Mapping[str, Shape]:
    """By name, of schemas as the Messages API wants them. What can't be spelled as a tag is left out."""
    return {
        tool["name"]: Shape(
            tool["name"],
            {
                name: schema
                for name, schema in tool.get("input_schema", {}).get("properties", {}).items()
                if _NAME.fullmatch(name)
            },
        )
        for tool in tools
        if _NAME.fullmatch(tool["name"])
    }


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a value may have; a schema that names none takes text."""
    several = schema.get("anyOf") or schema.get("oneOf") or ()
    named = schema.get("type", () if several else "string")
    return {named} if isinstance(named, str) else {*named, *(kind for one in several for kind in _types(one))}


def _reading(schema: Mapping[str, Any]) -> Callable[[str], Any]:
    if "string" not in _types(schema):
        return _as_json
    several = schema.get("anyOf") or schema.get("oneOf") or ()
    short = "maxLength" in schema or any("maxLength" in one for one in several)
    return _without_blanks if short else _as_it_stands


def _as_json(written: str) -> Any:
    try:
        return storable_json(json.loads(written))
    except (ValueError, RecursionError):
        return storable(written.strip())


def _without_blanks(written: str) -> str:
    return storable(written).strip()


def _as_it_stands(written: str) -> str:
    return storable(_FIRST_NEWLINE.sub("", written))
