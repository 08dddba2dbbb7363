"""How a program that runs for long is loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """What is loaded meanwhile stays for good, so Python doesn't look through it for garbage: not again and
    again while it grows, a sixth of the time that a worker takes to start, and not later either."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
