"""Exceptions that tell Celery what happened and not where: a traceback shows the paths of an installation.

Celery makes text of whatever traceback an exception has and gives that to Flower and to the result's reader.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self


def _nowhere() -> TracebackType:
    try:
        exec(compile("raise LookupError", "<orchestrator>", "exec"))  # noqa: S102 - a frame of no file
    except LookupError as error:
        here = error.__traceback__
        assert here is not None  # noqa: S101 - it was raised
        assert here.tb_next is not None  # noqa: S101 - in the code that has no file
        return here.tb_next
    raise AssertionError


_NOWHERE: Final = _nowhere()
_REAL: Final[Any] = BaseException.__dict__["__traceback__"]


class Bare(Exception):
    """To be raised as `raise Kind(…).bare() from None`, by a worker; elsewhere it is like any exception."""

    _bare = False

    def bare(self) -> Self:
        self._bare = True
        return self

    @property
    def __traceback__(self) -> TracebackType | None:
        # Celery can't do without one, so it is given one that leads nowhere.
        found: TracebackType | None = _NOWHERE if self._bare else _REAL.__get__(self)
        return found

    @__traceback__.setter
    def __traceback__(self, value: TracebackType | None) -> None:
        _REAL.__set__(self, value)
