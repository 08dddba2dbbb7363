"""What an error means for a step: whether another attempt may help, and when.

The classes are the seeds' six and what real model APIs add; the delays follow the seeds' table (network and
timeout 5 tries from 2 s, rate limit 3 from 10 s, dependency 2 of 5 s, resource 2 of 30 s, else 3 from 1 s,
doubling, cap 30 s); storage, which people have to mend, has the longest breath.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ErrorClass(StrEnum):
    """The one taxonomy that every provider, tool and agent maps its errors to."""

    NETWORK = "network"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    DEPENDENCY = "dependency"
    RESOURCE = "resource"
    STORAGE = "storage"
    """The artifact store is away or a disk is full: nothing is wrong with the work, somebody must mend it."""
    VALIDATION = "validation"
    AGENT = "agent"
    AUTH = "auth"
    CONTEXT_TOO_LONG = "context_too_long"
    CONTENT_REFUSED = "content_refused"
    LIMIT = "limit"
    RECORDING = "recording"
    REPOSITORY = "repository"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how late an error of one class is tried again; `tries` counts all attempts."""

    tries: int
    first: timedelta
    cap: timedelta = timedelta(seconds=30)
    factor: int = 2


_NEVER: Final = Backoff(tries=1, first=timedelta(0))
_NETWORK: Final = Backoff(tries=5, first=timedelta(seconds=2))
BACKOFF: Final[Mapping[ErrorClass, Backoff]] = MappingProxyType(
    {
        ErrorClass.NETWORK: _NETWORK,
        ErrorClass.TIMEOUT: _NETWORK,
        ErrorClass.OVERLOADED: _NETWORK,
        ErrorClass.RATE_LIMIT: Backoff(tries=3, first=timedelta(seconds=10), cap=timedelta(minutes=5)),
        ErrorClass.DEPENDENCY: Backoff(tries=2, first=timedelta(seconds=5)),
        ErrorClass.RESOURCE: Backoff(tries=2, first=timedelta(seconds=30)),
        ErrorClass.STORAGE: Backoff(
            tries=5, first=timedelta(seconds=30), cap=timedelta(hours=1), factor=5
        ),  # over an hour in all
        ErrorClass.AGENT: Backoff(tries=3, first=timedelta(seconds=1)),
        ErrorClass.INTERNAL: Backoff(tries=3, first=timedelta(seconds=1)),
        ErrorClass.VALIDATION: _NEVER,
        ErrorClass.AUTH: _NEVER,
        ErrorClass.CONTEXT_TOO_LONG: _NEVER,
        ErrorClass.CONTENT_REFUSED: _NEVER,
        ErrorClass.LIMIT: _NEVER,
        ErrorClass.RECORDING: _NEVER,
        ErrorClass.REPOSITORY: _NEVER,
    }
)


NOT_THE_AGENTS: Final = frozenset(
    {
        ErrorClass.NETWORK,
        ErrorClass.RATE_LIMIT,
        ErrorClass.OVERLOADED,
        ErrorClass.TIMEOUT,
        ErrorClass.AUTH,
        ErrorClass.RESOURCE,
        ErrorClass.STORAGE,
        ErrorClass.REPOSITORY,
        ErrorClass.RECORDING,
    }
)
"""What a provider, the machine or the repository did: whichever agent works would have met it."""
OF_MODELS: Final = "model-"
"""How the codes begin of what a model or its provider did wrong, whatever their class."""


def speaks_against_agent(error: str | None, code: str) -> bool:
    """Whether a failure of that class and code says something of the kind of agent that met it. Without a
    class it was no agent that failed: a deadline, a person's word, a worker that died."""
    return error is not None and error not in NOT_THE_AGENTS and not code.startswith(OF_MODELS)


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def of_os_error(error: OSError) -> ErrorClass:
    """A disk that is full, or one that is broken."""
    return ErrorClass.STORAGE if error.errno in _FULL else ErrorClass.RESOURCE


def next_delay(
    error: ErrorClass, attempt: int, max_attempts: int, retry_after: timedelta | None = None
) -> timedelta | None:
    """How long to wait before attempt `attempt + 1`; None when this attempt (counted from 1) was the last.

    A server's own `retry_after` is honoured when it is longer than ours.
    """
    rule = BACKOFF[error]
    if attempt >= min(rule.tries, max_attempts):
        return None
    ours: timedelta = min(rule.first * rule.factor ** (attempt - 1), rule.cap)
    return ours if retry_after is None else max(ours, retry_after)
