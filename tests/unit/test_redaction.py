from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, strategies as st

from orchestrator.core.redaction import REDACTED, SHORTEST, SHORTEST_NAME, Redactor

SECRET = "hunter2/pa ss+wörd="

secrets = st.text(min_size=SHORTEST, max_size=40).filter(lambda value: value not in REDACTED)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(value=secrets, before=st.text(), after=st.text())
def test_no_planted_value_survives(value: str, before: str, after: str) -> None:
    assert value not in Redactor([value]).text(before + value + after).replace(REDACTED, "\0")


@given(value=st.binary(min_size=12, max_size=40).map(bytes.hex), before=st.binary(), after=st.binary())
def test_no_planted_value_survives_inside_base64(value: str, before: bytes, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = Redactor([value]).text(encode(before + value.encode() + after).decode())
        assert REDACTED in shown
        assert len(shown) < len(encode(before + after)) + len(REDACTED) + 10


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode()).decode(),
    ],
)
def test_a_value_is_found_in_its_usual_encodings(spelling: str) -> None:
    shown = Redactor([SECRET]).text(f"before {spelling} after")
    assert spelling not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert REDACTED in shown


@given(values=st.lists(secrets, max_size=3), text=st.text())
def test_redacting_twice_changes_nothing_more(values: list[str], text: str) -> None:
    redactor = Redactor(values)
    once = redactor.text(" ".join([text, *values, text]))
    assert redactor.text(once) == once


@given(json_values)
def test_text_without_secrets_is_left_alone(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assume("@" not in text)
    assume(not any(word in text.lower() for word in ("sk-", "bearer", "xox", "gh", "akia", "asia")))
    assert Redactor(["a secret that isn't there"]).text(text) == text


@given(value=secrets, nested=json_values)
def test_structures_keep_their_shape(value: str, nested: object) -> None:
    redactor = Redactor([value])
    given_value = {"outer": [nested, {"inner": value}], value[: SHORTEST_NAME - 1]: 1}
    shown = redactor.value(given_value)
    assert list(shown) == list(given_value)
    assert value not in shown["outer"][1]["inner"].replace(REDACTED, "\0")
    assert redactor.value(shown) == shown


@given(value=st.text(min_size=SHORTEST_NAME, max_size=40).filter(lambda value: value not in REDACTED))
def test_a_name_can_be_a_secret_too(value: str) -> None:
    shown = Redactor([value]).value({"a": [{f"before {value}": 1}]})
    (name,) = shown["a"][0]
    assert value not in name.replace(REDACTED, "\0")


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-" + "aB3_" * 20,
        "sk-proj-" + "aB3" * 16,
        "ork_" + "Zx9" * 12,
        "ghp_" + "a1B2" * 9,
        "gho_" + "a1B2" * 9,
        "github_pat_11ABCDEFG0" + "a1B2_" * 12,
        "glpat-" + "a1B2" * 5,
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-123456789012-abcdefghijkl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow==\nabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B",
    ],
)
def test_what_looks_like_a_secret_goes(secret: str) -> None:
    for text in (f"key: {secret}", f'{{"key": "{secret}"}}', f"KEY={secret}\n", f"'{secret}', and more"):
        shown = Redactor().text(text)
        assert secret not in shown
        assert secret[10:30] not in shown
        assert shown.startswith(text[0])


def test_bearer_tokens_and_user_info_go_and_what_is_around_them_stays() -> None:
    redactor = Redactor()
    assert redactor.text("Authorization: Bearer abcdef123456.x-y_z") == f"Authorization: Bearer {REDACTED}"
    assert (
        redactor.text("clone https://me:s3cr3t@host.example/a.git now")
        == f"clone https://{REDACTED}@host.example/a.git now"
    )
    assert redactor.text("redis://:pw@h:6379/0") == f"redis://{REDACTED}@h:6379/0"


@pytest.mark.parametrize(
    "text",
    [
        "def bearer(token): return token",
        "mail me@example.org or see https://example.org/@me?x=a@b",
        "git@github.com:owner/name.git",
        "task-ant-hill and risk-averse sk-short",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "the bearer of bad news is here",
        "sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "https://host:8080/path",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor(["something else"]).text(text) == text


def test_short_values_are_not_looked_for() -> None:
    assert Redactor(["", "a", "12345"]).text("a 12345 banana") == "a 12345 banana"


def test_its_cost_grows_with_the_text_and_not_faster() -> None:
    """Hostile shapes included: a quadratic pattern takes a hundred times as long for ten times the text."""
    redactor = Redactor([f"secret-number-{number}" for number in range(50)])
    pieces = (
        "-----BEGIN PRIVATE KEY-----",
        "://",
        "Bearer ",
        "ordinary words of text\n",
        "x" * 100,
        "sk-ant-",
    )
    for piece in pieces:
        small, large = (_seconds(redactor, piece * (size // len(piece))) for size in (100_000, 1_000_000))
        assert large < max(small, 0.002) * 40, piece


def _seconds(redactor: Redactor, text: str) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        redactor.text(text)
        best = min(best, time.thread_time() - start)
    return best
