"""What the worker and those who send to it must agree on."""

from typing import Final

BARE: Final = "benchmarks.bare"
