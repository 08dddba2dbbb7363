"""Keys that a command prints, and that expire."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway_server import gateway_to
from tests.integration.ledger import Ledger, step
from tests.integration.test_gateway_faults import code, post
from tests.messages_server import Answer, MessagesServer, closing, opening, serving_with, text_block

REPLY = Answer([opening(), *text_block(0, "I ", "read."), *closing("end_turn")])
REFUSED = Answer(status=401, error={"type": "authentication_error", "message": "expired"})
TOGETHER = 6


class Keyed(MessagesServer):
    """Lets in who shows the key of the hour."""

    good = "key-number-1-of-this-provider"

    def choose(self, headers: Mapping[str, str]) -> Answer:
        return REPLY if headers.get("x-api-key") == self.good else REFUSED


@pytest.fixture
def claimed(ledger: Ledger) -> Any:
    return ledger.take(ledger.task("t", step("a"))["a"])


def counting(folder: Path, last: int = 9) -> str:
    """Prints another key each time, up to the last one, and slowly: whoever comes meanwhile must wait."""
    runs = folder / "runs"
    return (
        f"echo >> {runs}; sleep 0.3; n=$(wc -l < {runs}); [ $n -le {last} ] || n={last};"
        " printf key-number-$n; sleep 0.1; echo -of-this-provider"
    )


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_a_key_that_expired_is_renewed_once_for_all_who_wait_and_each_call_is_done_once(
    ledger: Ledger, tmp_path: Path, claimed: Any
) -> None:
    with (
        serving_with(Keyed([])) as provider,
        gateway_to(ledger, provider.url, tmp_path, anthropic_api_key_command=counting(tmp_path)) as gateway,
    ):
        access = gateway.access(ledger, claimed)
        assert post(access).status_code == 200
        provider.good = "key-number-2-of-this-provider"
        with ThreadPoolExecutor(TOGETHER) as pool:
            answers = list(pool.map(lambda _: post(access), range(TOGETHER)))
        assert [answer.status_code for answer in answers] == [200] * TOGETHER
        assert runs(tmp_path) == 2
    shown = [headers["x-api-key"][11] for headers, _ in provider.requests]
    assert shown.count("2") == TOGETHER, "one send that is let in, for each call"
    calls = ledger.rows("SELECT count(*) AS n FROM usage")
    assert calls == [{"n": TOGETHER + 1}]


def test_where_the_command_brings_the_same_key_again_the_refusal_is_passed_on(
    ledger: Ledger, tmp_path: Path, claimed: Any
) -> None:
    command = counting(tmp_path, last=1)
    with (
        serving_with(Keyed([])) as provider,
        gateway_to(ledger, provider.url, tmp_path, anthropic_api_key_command=command) as gateway,
    ):
        provider.good = "another"
        access = gateway.access(ledger, claimed)
        assert [post(access).status_code for _ in range(3)] == [401] * 3
        assert runs(tmp_path) == 2, "not again and again"
        assert len(provider.requests) == 3, "what was refused with it isn't sent again"


@pytest.mark.parametrize(
    "command", ["exit 3", "true", "printf 'two\\nlines'", "printf 'k\\303\\266y'", "yes"]
)
def test_a_command_that_prints_no_key_is_told_and_nothing_is_sent(
    ledger: Ledger, tmp_path: Path, claimed: Any, command: str
) -> None:
    with (
        serving_with(Keyed([])) as provider,
        gateway_to(ledger, provider.url, tmp_path, anthropic_api_key_command=command) as gateway,
    ):
        answer = post(gateway.access(ledger, claimed))
        assert (answer.status_code, code(answer)) == (503, "provider-missing")
        assert "command for the provider's key" in answer.json()["error"]["message"]
        assert provider.requests == []


def test_what_a_command_printed_is_known_as_a_secret(ledger: Ledger, tmp_path: Path, claimed: Any) -> None:
    with (
        serving_with(Keyed([])) as provider,
        gateway_to(ledger, provider.url, tmp_path, anthropic_api_key_command=counting(tmp_path)) as gateway,
    ):
        assert post(gateway.access(ledger, claimed)).status_code == 200
        assert provider.good not in gateway.wiring.redactor.text(f"I was shown {provider.good}.")
