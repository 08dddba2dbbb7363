"""A private key that is printed slowly reaches what hides it in pieces."""

from __future__ import annotations

import base64
import json
import random
import time

import pytest

from orchestrator.core.private_keys import MOST_OTHER_LINES, PrivateKeys
from orchestrator.core.redaction import REDACTED, Redactor
from orchestrator.db.effects import LogChunk
from orchestrator.engine.untrusted import cut
from orchestrator.tasks.backlog import Backlog
from orchestrator.workspaces.commands import Tail

RANDOM = random.Random(3)
BODY = base64.b64encode(RANDOM.randbytes(48 * 24 + 11)).decode()
LINES = [BODY[at : at + 64] for at in range(0, len(BODY), 64)]
KEY = ["-----BEGIN RSA PRIVATE KEY-----", *LINES, "-----END RSA PRIVATE KEY-----"]
SPELLINGS = {
    "as it is": "\n".join(KEY) + "\n",
    "CRLF": "\r\n".join(KEY) + "\r\n",
    "indented": "".join(f"    {line}\n" for line in KEY),
    "in a patch": "".join(f"+{line}\n" for line in KEY),
    "numbered": "".join(f"{at:6}\t{line}\n" for at, line in enumerate(KEY, 1)),
    "in a log": "".join(f"12:00:01 INFO {line}\n" for line in KEY),
    "in JSON": json.dumps({"key": "\n".join(KEY)}) + "\n",
    "in JSON in JSON": json.dumps(json.dumps({"key": "\r\n".join(KEY)})) + "\n",
    "as source": "".join(f'    "{line}\\n"\n' for line in KEY),
    "in one line": " ".join(KEY) + "\n",
    "encrypted": "\n".join([KEY[0], "Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-256-CBC,0A", "", *KEY[1:]])
    + "\n",
}


def leaked(shown: str) -> list[str]:
    """Every part of the key's body that can be read."""
    return [BODY[at : at + 8] for at in range(len(BODY) - 7) if BODY[at : at + 8] in shown]


@pytest.mark.parametrize("size", [1, 7, 64, 65, 500, 10_000])
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_is_hidden_in_whatever_pieces_it_comes(spelling: str, size: int) -> None:
    text = f"before\n{spelling}after it\n"
    keys = PrivateKeys()
    shown = "".join(keys.text(text[at : at + size]) for at in range(0, len(text), size)) + keys.rest()
    assert leaked(shown) == []
    assert shown.startswith("before\n")
    assert shown.endswith("\nafter it\n")
    assert Redactor().text(shown) == shown or size < len("-----BEGIN RSA PRIVATE KEY-----")


def test_a_key_of_which_each_line_is_written_by_itself_is_in_no_row() -> None:
    backlog = Backlog(Redactor().text)
    rows: list[LogChunk] = []
    for line in KEY:
        backlog.log("stdout", line + "\n")
        backlog.log("stderr", "still at it\n")
        batch = backlog.take()
        assert batch is not None
        rows += batch.told
        backlog.written(batch)
    assert leaked("".join(row.text for row in rows if row.stream == "stdout")) == []
    assert [row.text for row in rows if row.stream == "stderr"] == ["still at it\n"] * len(KEY)


def test_the_lines_of_two_commands_between_each_other_hide_no_less() -> None:
    heard: list[str] = []
    one, other = Tail(64, 10**6, heard.append), Tail(64, 10**6, heard.append)
    for line in KEY:
        one.feed("stdout", line.encode() + b"\n")
        other.feed("stdout", b"another line\n" * (MOST_OTHER_LINES + 10))
    assert leaked("".join(heard)) == []
    assert "".join(heard).count("another line\n") == len(KEY) * (MOST_OTHER_LINES + 10)


def test_a_bound_within_the_key_shows_neither_half_of_it() -> None:
    text = "x " * 100 + SPELLINGS["as it is"] + "y " * 100
    for most in range(300, 1600, 100):
        assert leaked(Redactor().text(cut(text, most))) == []
        heard: list[str] = []
        tail = Tail(most, most, heard.append)
        for line in text.splitlines(keepends=True):
            tail.feed("stdout", line.encode())
        assert leaked("".join(heard)) == []
        assert leaked(Redactor().text(tail.text)) == []


def test_the_rest_of_a_log_is_shown_where_no_end_comes() -> None:
    log = [f"step {number}: all is well, says {number:040x}" for number in range(1000)]
    shown = Redactor().text("\n".join([*KEY[:5], *log]))
    assert leaked(shown) == []
    assert shown.startswith(f"{REDACTED}\nstep 0: all is well")
    assert shown.endswith("\n".join(log[MOST_OTHER_LINES + 5 :]))


def test_a_program_that_speaks_of_keys_is_shown_whole_but_for_the_mark() -> None:
    text = 'if "-----BEGIN PRIVATE KEY-----" in text:\n    return\nreturn_the_first_of_all\n'
    assert Redactor().text(text) == text.replace("-----BEGIN PRIVATE KEY-----", REDACTED)


def test_a_list_of_lines_holds_a_key_too() -> None:
    shown = Redactor().value(
        {"lines": ["before\n", *KEY, "after\n"], "open": [KEY[0], *LINES[:3], "well, yes"]}
    )
    assert leaked(json.dumps(shown)) == []
    assert (shown["lines"][0], shown["lines"][-1]) == ("before\n", "after\n")
    assert shown["open"] == [REDACTED, "", "", "", "well, yes"]
    assert Redactor().value(shown) == shown


def test_of_a_whole_key_nothing_is_shown_that_stands_between_its_lines() -> None:
    text = f"{KEY[0]}\n'MIIEvQ' 'IBADAN' 'Bgkqhk'\n{KEY[-1]}\n"
    assert Redactor().text(text) == f"{REDACTED}\n"


def test_hostile_marks_cost_no_more_than_their_length() -> None:
    for piece in ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "\\", "-----BEGIN ", "aaaa\n"):
        took = []
        for count in (2_000, 20_000):
            text = piece * count + "PRIVATE KEY-----END PRIVATE KEY-----"
            began = time.process_time()
            Redactor().text(text)
            took.append(time.process_time() - began)
        assert took[1] < 40 * max(took[0], 0.005)
