from __future__ import annotations

from orchestrator.core.redaction import REDACTED, Redactor
from orchestrator.workspaces.commands import Tail

SECRET = "a-secret-of-this-installation"
WORDS = 200


def test_where_output_is_cut_no_half_of_a_secret_is_left() -> None:
    """It is redacted later, and half of it would not be found."""
    printed = f"{SECRET} " * WORDS
    for limit in range(500, 500 + len(SECRET) + 1):
        live: list[str] = []
        tail = Tail(limit, limit, live.append)
        tail.feed("stdout", printed.encode())
        for text in (tail.text, "".join(live)):
            shown = Redactor([SECRET]).text(text)
            assert shown.count(REDACTED) > 10
            assert "secret" not in shown
            assert "installation" not in shown


def test_output_says_how_much_of_it_was_left_out() -> None:
    tail = Tail(20, 0, lambda _text: None)
    tail.feed("stdout", b"one two three\nfour five six seven\n")
    assert tail.text == "[19 earlier bytes left out]\nfive six seven\n"
