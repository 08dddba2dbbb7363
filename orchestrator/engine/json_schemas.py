"""Checking values against a JSON schema that a stranger wrote.

What can take for ever in a hostile schema is not checked here (regular expressions, a web of references,
`uniqueItems`): the stranger's own program checks it again anyway. Nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_REFERENCES: Final = 16
"""Enough for what generators write, too few for references that double a hundred times."""
MOST_FAULTS: Final = 10
_REFERENCES: Final = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_LEFT_OUT: Final = frozenset(
    {"pattern", "patternProperties", "propertyNames", "uniqueItems", "format", "$schema"}
)
_OF_NAMED: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
_OF_MANY: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_ONE: Final = frozenset(
    {
        "items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains", "not", "if",
        "then", "else",
    }
)  # fmt: skip


class SchemaUnusable(Exception):
    """It is no JSON schema of an object's properties."""


class ArgumentsSchema:
    """Raises `SchemaUnusable` for what is none."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            if schema.get("type") != "object":
                raise SchemaUnusable("its type is not 'object'")
            references = _count(schema)
            checked = _checkable(schema, references=references <= MOST_REFERENCES)
            Draft202012Validator.check_schema(checked)
            self._validator = Draft202012Validator(checked, registry=Registry())
        except SchemaError as error:
            raise SchemaUnusable(error.message[:300]) from error
        except RecursionError as error:
            raise SchemaUnusable("it is too deep") from error

    def faults(self, value: Mapping[str, Any]) -> list[str]:
        """Ten at most, each with the place where it is."""
        try:
            found = list(islice(self._validator.iter_errors(value), MOST_FAULTS))
        except (RecursionError, ArithmeticError, Unresolvable):
            return []  # then only its author can check it
        return [
            f"{'.'.join(str(part) for part in error.path) or 'arguments'}: {_short(error.message)}"
            for error in found
        ]


def _short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:100]} … {message[-80:]}"  # noqa: PLR2004


def _count(schema: Any) -> int:
    if isinstance(schema, dict):
        return sum((name in _REFERENCES) + _count(value) for name, value in schema.items())
    return sum(map(_count, schema)) if isinstance(schema, list) else 0


def _checkable(schema: Any, *, references: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    left_out = _LEFT_OUT if references else _LEFT_OUT | _REFERENCES
    if "patternProperties" in schema:
        left_out |= {"additionalProperties", "unevaluatedProperties"}
    return {
        name: _inner(name, value, references=references)
        for name, value in schema.items()
        if name not in left_out
    }


def _inner(name: str, value: Any, *, references: bool) -> Any:
    if name in _OF_NAMED and isinstance(value, dict):
        return {key: _checkable(inner, references=references) for key, inner in value.items()}
    if name in _OF_MANY and isinstance(value, list):
        return [_checkable(inner, references=references) for inner in value]
    return _checkable(value, references=references) if name in _OF_ONE else value
