"""Whose models can be reached from here."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.db import connect, gateways

if TYPE_CHECKING:
    from orchestrator.bootstrap.wiring import Wiring

_LOOKED_UP_SECONDS: Final = 5.0


@dataclass
class Providers:
    """Whose models can be reached: with a key of this process's own, as the gateway has it, or through a
    gateway that lives. That is looked up anew every few seconds, and when nobody can say, it stays as it was.
    """

    wiring: Wiring
    _seen: frozenset[str] = frozenset()
    _until: float = 0.0

    def now(self) -> frozenset[str]:
        settings = self.wiring.settings
        keys = {
            "anthropic": settings.anthropic_api_key or settings.anthropic_api_key_command,
            "openai": settings.openai_api_key or settings.openai_api_key_command,
        }
        own = frozenset(name for name, key in keys.items() if key)
        if settings.gateway_url is None or not self.wiring.has_database:
            return own
        if time.monotonic() >= self._until:
            with contextlib.suppress(connect.SQLAlchemyError), self.wiring.engine.connect() as connection:
                self._seen = gateways.providers(connection, self.wiring.tenant_id)
            self._until = time.monotonic() + _LOOKED_UP_SECONDS
        return own | self._seen
