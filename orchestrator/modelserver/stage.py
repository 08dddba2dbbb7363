"""What one model server knows between two requests."""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.modelserver.faults import FaultPlan
from orchestrator.modelserver.script import Player, Script
from orchestrator.modelserver.sends import SendLog
from orchestrator.modelserver.upstream import Upstream

_RESPONSES_KEPT: Final = 1000


@dataclass(slots=True)
class Stage:
    """Used from the event loop that serves; the log from any thread.

    With an `upstream` nothing is played: all goes there. `knows_ids`: a `previous_response_id` that is not
    of this server's is refused, as the real API does.
    """

    player: Player
    log: SendLog = field(default_factory=SendLog)
    faults: FaultPlan = field(default_factory=FaultPlan)
    models: Sequence[str] = Script().models
    upstream: Upstream | None = None
    knows_ids: bool = True
    _responses: OrderedDict[str, list[Mapping[str, Any]]] = field(default_factory=OrderedDict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _run: str = field(default_factory=lambda: secrets.token_hex(4))

    @classmethod
    def of(cls, script: Script, log: SendLog | None = None) -> Stage:
        return cls(script, log or SendLog(), FaultPlan(script.faults), script.models)

    def load(self, script: Script) -> None:
        """Plays this script from now on; its faults take the place of those that stood."""
        self.player, self.models, self.faults = script, script.models, FaultPlan(script.faults)

    def new_send_id(self) -> str:
        return f"{self._run}{next(self._numbers):06x}"

    def keep_response(self, response_id: str, items: list[Mapping[str, Any]]) -> None:
        """Input and output, for whoever goes on from there by `previous_response_id`."""
        self._responses[response_id] = items
        while len(self._responses) > _RESPONSES_KEPT:
            self._responses.popitem(last=False)

    def kept_response(self, response_id: str) -> list[Mapping[str, Any]] | None:
        return self._responses.get(response_id)
