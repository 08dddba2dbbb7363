"""Wiring: reads the settings once and hands the shells what they work with.

Nothing here connects before it is used, and each part is imported only by the process that uses it: a
producer that calls `.delay()` loads neither a model's SDK nor a web framework.
"""

from orchestrator.bootstrap.agents import Desk, adapter
from orchestrator.bootstrap.logs import redact_logs
from orchestrator.bootstrap.wiring import Wiring, load

__all__ = ["Desk", "Wiring", "adapter", "load", "redact_logs"]
