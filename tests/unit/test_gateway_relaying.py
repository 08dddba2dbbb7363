"""What is written down of a call that was left, or that broke off."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended
from orchestrator.db.sql import StepRef
from orchestrator.gateway.dialects import MESSAGES, Request
from orchestrator.gateway.observing import Observer
from orchestrator.gateway.relaying import Call

RUN = Run(StepRef("default", "t", "w", "s"), "t", "sha", 1, 0, "engine", ())


def ended(max_output: int | None, *, said: bytes = b"", **more: Any) -> Ended:
    request = Request("m", True, max_output, {}, b"{}")
    observer = Observer(MESSAGES, streamed=True)
    list(observer.feed(said))
    outgoing = httpx2.Request("POST", "http://provider")
    call = Call("c", RUN, MESSAGES, request, outgoing, (9, 4096), observer, sent=True, status=200, **more)
    return call.ended({})


@pytest.mark.parametrize(
    ("seconds", "max_output", "output"),
    [(1, 30_000, 4096), (200, 30_000, 10_000), (10_000, 30_000, 30_000), (10_000, None, 128_000)],
)
def test_who_leaves_late_pays_for_what_a_model_may_have_thought_unseen(
    seconds: float, max_output: int | None, output: int
) -> None:
    used = ended(max_output, lasted=seconds).used
    assert used is not None
    assert (used.input, used.output, used.estimated) == (9, output, True)


def test_a_reply_that_its_provider_broke_off_is_paid_for_as_far_as_it_came() -> None:
    used = ended(30_000, lasted=600, cut=False, error="provider-unreachable").used
    assert used is not None
    assert used.output == 1


def test_what_a_provider_calls_an_error_is_fit_for_a_terminal() -> None:
    said = b'data: {"type": "error", "error": {"type": "\\u001b[2Jover\\nloaded"}}\n\n'
    assert ended(10, said=said).error_code == "??2Jover?loaded"
