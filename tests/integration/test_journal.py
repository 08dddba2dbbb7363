"""A step's conversation in Postgres: it only grows, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any, Literal

import pytest
from sqlalchemy.exc import IntegrityError

from orchestrator.commands import answer
from orchestrator.core.redaction import Redactor
from orchestrator.core.states import Status, WaitingOn
from orchestrator.core.verdict import Ask
from orchestrator.db import effects, journal, transitions
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import Scope
from orchestrator.engine import approval
from orchestrator.engine.ports import (
    Call,
    Compacted,
    Corrected,
    Heard,
    LeaseLost,
    Spending,
    ToolResult,
    Turn,
    Usage,
)
from orchestrator.tasks.journal import PostgresJournal
from tests.integration.ledger import TENANT, Ledger, opened, step

SECRET = "sk-ant-a-secret-of-this-installation"


def kept(ledger: Ledger, claimed: Claimed, conversation: int = 0) -> PostgresJournal:
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, conversation)
    return PostgresJournal(ledger.engine, scope, Redactor([SECRET]))


def send(ledger: Ledger, text: str) -> None:
    ledger.run("INSERT INTO messages (task_id, author, text) VALUES ('t', 'me', :text)", text=text)


def turn(number: int, text: str = "hello", kind: Literal["live", "recorded"] = "recorded") -> Turn:
    return Turn(
        number=number,
        content=({"type": "text", "text": text},),
        stop_reason="tool_use",
        usage=Usage(10, 2, 3, 4, 1),
        model="model-1",
        model_kind=kind,
        request_id="req_1",
        cost_usd=Decimal("0.0125"),
        elapsed=timedelta(seconds=1.5),
    )


def test_what_was_appended_is_read_back_in_order_by_a_later_claim(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    first = kept(ledger, ledger.take(ref))
    first.append_turn(turn(1))
    first.begin_call(1, "call_1", "write_file", {"path": "x"})
    first.finish_call("call_1", ToolResult("wrote"), "c0ffee")
    send(ledger, "Go left.")
    assert first.hear(2) == [Heard(2, "Go left.")]
    first.append_turn(turn(2, "again"))
    first.begin_call(2, "call_2", "run_command", {"command": "make"})
    ledger.expire(ref)
    found = kept(ledger, ledger.take(ref)).load()
    assert found.entries == (turn(1), Heard(2, "Go left."), turn(2, "again"))
    assert found.calls == (Call("call_1", ToolResult("wrote"), "c0ffee"), Call("call_2"))
    assert found.checkpoint == "c0ffee"


class DiesHere(Redactor):
    """Stands between taking a message and journalling it: the process ends there, as by kill -9."""

    def text(self, text: str) -> str:
        del text
        os._exit(9)


def test_a_process_that_dies_between_taking_a_message_and_journalling_it_loses_none(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    first = ledger.take(ref)
    for text in ("Go left.", "Then right."):
        send(ledger, text)
    ledger.engine.dispose()

    def die() -> None:
        mine = opened(ledger.url)
        PostgresJournal(mine.engine, Scope(first.step, first.fence, 1, 0), DiesHere([])).hear(1)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9

    ledger.expire(ref)
    mine = kept(ledger, ledger.take(ref))
    send(ledger, "And stop.")
    said = [Heard(1, "Go left."), Heard(1, "Then right."), Heard(1, "And stop.")]
    assert mine.hear(1) == said
    assert mine.hear(2) == (), "each is heard once"
    assert mine.load().entries == tuple(said)


def test_code_that_speaks_of_a_nul_is_kept_as_it_is_and_a_nul_itself_is_shown(ledger: Ledger) -> None:
    """A claim that died before a call runs leaves it to the next, which has its arguments from here alone."""
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    spoken = r'if (c == "\u0000" || c == "\\u0000") {}'
    mine.append_turn(turn(1, f"{spoken}\0\0\\\0"))
    (found,) = mine.load().entries
    assert isinstance(found, Turn)
    assert found.content[0]["text"] == f"{spoken}\ufffd\ufffd\\\ufffd"


def test_half_a_character_is_shown_and_whole_ones_are_kept(ledger: Ledger) -> None:
    """A program that cuts a text after so many units of UTF-16 leaves one."""
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    for number, (said, read) in enumerate(
        (
            ("🙂🙂\ud83d", "🙂🙂\ufffd"),
            ("\ude42🙂", "\ufffd🙂"),
            ("\ud83d\ud83d\ude42\ude42", "\ufffd🙂\ufffd"),
            (r"\ud83d is a half, \\ud83d too 🙂", r"\ud83d is a half, \\ud83d too 🙂"),
            ("\\\ud83d\0", "\\\ufffd\ufffd"),
        ),
        start=1,
    ):
        mine.append_turn(turn(number, said))
        found = mine.load().entries[-1]
        assert isinstance(found, Turn)
        assert found.content[0]["text"] == read


def test_leave_for_a_call_is_good_for_that_call_once_it_was_in_the_journal(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    numbers = [1e16, 1.5e22, -1e300, 1.0, 10**30, 0.1, 1e-7, -0.0, 3]
    arguments = mine.as_kept({"at": numbers, "text": "a\\u0000 b", "in": {"z": None, "a": [True]}})
    call = {"type": "tool_use", "id": "c", "name": "f", "input": arguments}
    mine.append_turn(replace(turn(1), content=(call,)))
    (found,) = mine.load().entries
    assert isinstance(found, Turn)
    loaded = found.content[0]["input"]
    assert approval.digest("f", loaded) == approval.digest("f", arguments)
    assert approval.digest("f", {**loaded, "at": [*numbers[:-1], 4]}) != approval.digest("f", arguments)


def test_of_two_steps_at_once_one_hears_what_the_task_is_told(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"))
    journals = [kept(ledger, ledger.take(ref)) for ref in refs.values()]
    for number in range(20):
        send(ledger, f"{number}")
    start = Barrier(2)

    def hear(mine: PostgresJournal) -> list[str]:
        start.wait()
        return [heard.text for heard in mine.hear(1)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(hear, journals)
    assert sorted(one + other, key=int) == [str(number) for number in range(20)]
    for mine, heard in zip(journals, (one, other), strict=True):
        assert [entry.text for entry in mine.load().entries if isinstance(entry, Heard)] == heard


def test_a_turn_is_kept_once(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    mine.append_turn(turn(1))
    with pytest.raises(IntegrityError, match="uq_turns_number"):
        mine.append_turn(turn(1, "another"))
    assert mine.load().entries == (turn(1),)
    assert ledger.rows("SELECT input_tokens, output_tokens, cost_usd, recorded FROM usage") == [
        {"input_tokens": 10, "output_tokens": 2, "cost_usd": Decimal("0.0125"), "recorded": True}
    ]


def test_what_a_live_model_used_is_left_to_the_gateway_to_write_down(ledger: Ledger) -> None:
    """Which does so before the reply's end is seen here: a second row would count it twice."""
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    mine.append_turn(turn(1, kind="live"))
    assert mine.load().entries == (turn(1, kind="live"),)
    assert ledger.rows("SELECT 1 FROM usage") == []


def test_a_call_is_begun_once_and_its_first_result_stays(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    mine = kept(ledger, ledger.take(ref))
    mine.begin_call(1, "call_1", "run_command", {"command": "make"})
    mine.begin_call(1, "call_1", "run_command", {"command": "something else"})
    mine.finish_call("call_1", ToolResult("made"), None)
    with pytest.raises(LeaseLost):
        mine.finish_call("call_1", ToolResult("made again"), None)
    assert mine.load().calls == (Call("call_1", ToolResult("made")),)
    assert ledger.rows("SELECT arguments FROM tool_calls") == [{"arguments": {"command": "make"}}]


def test_a_claim_that_was_lost_writes_nothing_and_hears_so(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    zombie = kept(ledger, ledger.take(ref))
    zombie.begin_call(1, "call_1", "run_command", {})
    send(ledger, "late")
    ledger.expire(ref)
    ledger.take(ref)
    for word in (
        lambda: zombie.append_turn(turn(1)),
        lambda: zombie.hear(1),
        lambda: zombie.begin_call(1, "late", "read_file", {}),
        lambda: zombie.finish_call("call_1", ToolResult("late"), None),
    ):
        with pytest.raises(LeaseLost):
            word()
    assert zombie.load().entries == ()
    assert zombie.load().calls == (Call("call_1"),)
    assert ledger.rows("SELECT 1 FROM usage") == []


def test_a_conversation_after_a_conflict_is_a_new_one(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    kept(ledger, claimed).append_turn(turn(1, "before"))
    again = kept(ledger, claimed, conversation=1)
    again.append_turn(turn(1, "after"))
    assert again.load().entries == (turn(1, "after"),)


def test_an_answer_is_found_by_its_call_and_counts_as_consumed_with_its_result(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    first = ledger.take(ref)
    kept(ledger, first).begin_call(1, "ask", "ask_followup_question", {})
    ledger.ask(first, "ask")
    ledger.do(lambda c: answer.answer(c, TENANT, "t", "left", by="me"))
    mine = kept(ledger, ledger.take(ref))
    assert mine.load().answers == {"ask": "left"}
    assert ledger.question(ref)["consumed_at"] is None
    mine.finish_call("ask", ToolResult("left"), None)
    assert ledger.question(ref)["consumed_at"] is not None


def test_a_conversation_that_is_begun_anew_does_not_take_the_old_one_s_answers_for_its_own(
    ledger: Ledger,
) -> None:
    """Some models number their calls, so that another question comes with the same id."""
    ref = ledger.task()["work"]
    ledger.ask(ledger.take(ref))
    ledger.do(lambda c: answer.answer(c, TENANT, "t", "left", by="me"))
    first = ledger.take(ref)
    assert kept(ledger, first).load().answers == {"call_1": "left"}
    ledger.do(lambda c: effects.count_conflict(c, ref, first.fence, "<<<<<<<"))
    ledger.do(lambda c: transitions.give_back(c, ref, first.fence, "conflict"))
    again = ledger.take(ref)
    assert again.conflicts == 1
    assert kept(ledger, again, again.conflicts).load().answers == {}
    asked = ledger.ask(again)
    assert asked is not None
    assert asked.settled.status is Status.PENDING_INPUT
    ledger.do(lambda c: answer.answer(c, TENANT, "t", "right", by="me"))
    mine = kept(ledger, ledger.take(ref), again.conflicts)
    assert mine.load().answers == {"call_1": "right"}
    mine.begin_call(1, "call_1", "ask_followup_question", {})
    mine.finish_call("call_1", ToolResult("right"), None)
    answers = ledger.rows("SELECT answer ->> 'text' AS text FROM questions WHERE consumed_at IS NOT NULL")
    assert [row["text"] for row in answers] == ["right"]


def test_no_secret_is_kept(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    mine.append_turn(turn(1, f"the key is {SECRET}"))
    mine.begin_call(1, "call_1", "run_command", {"command": f"export KEY={SECRET}"})
    mine.finish_call("call_1", ToolResult(f"KEY={SECRET}\x00"), None)
    send(ledger, SECRET)
    assert SECRET not in str(mine.hear(2))
    for table in ("turns", "tool_calls"):
        assert SECRET not in str(ledger.rows(f"SELECT * FROM {table}"))


def test_a_thousand_turns_are_appended_never_rewritten(ledger: Ledger) -> None:
    """What a turn costs does not depend on how many there were."""
    claimed = ledger.take(ledger.task()["work"])
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, 0)

    def write(connection: Any) -> None:
        for number in range(1, 1001):
            journal.append(connection, scope, "turn", number, {"n": number})

    ledger.do(write)
    (table,) = ledger.rows(
        "SELECT count(*) AS rows, count(DISTINCT xmin::text) AS writers,"
        " min(pg_column_size(message)) AS least, max(pg_column_size(message)) AS most FROM turns"
    )
    assert (table["rows"], table["writers"]) == (1000, 1)
    assert table["most"] - table["least"] < 16


def test_what_others_spend_is_all_of_the_workflow_but_this_conversation(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"))
    a, b = (kept(ledger, ledger.take(refs[key])) for key in "ab")
    a.append_turn(turn(1))
    a.append_turn(turn(2))
    b.append_turn(turn(1))
    assert a.spent_elsewhere() == Spending(1, 19, Decimal("0.0125"))
    assert b.spent_elsewhere() == Spending(2, 38, Decimal("0.0250"))
    again = replace(a, scope=replace(a.scope, conversation=1))
    assert again.spent_elsewhere() == Spending(3, 57, Decimal("0.0375")), "after a conflict"
    other = ledger.task("other")["work"]
    assert kept(ledger, ledger.take(other)).spent_elsewhere() == Spending()


def test_what_subtasks_spend_is_spent_of_the_same_budget(ledger: Ledger) -> None:
    parent = kept(ledger, ledger.take(ledger.task("parent")["work"]))
    child = kept(ledger, ledger.take(ledger.task("child")["work"]))
    ledger.run("UPDATE tasks SET root_id = 'parent', parent_id = 'parent' WHERE id = 'child'")
    parent.append_turn(turn(1))
    child.append_turn(turn(1))
    child.append_turn(turn(2))
    assert parent.spent_elsewhere() == Spending(2, 38, Decimal("0.0250"))
    assert child.spent_elsewhere() == Spending(1, 19, Decimal("0.0125"))


def test_what_the_gateway_has_counted_is_not_counted_again(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    mine.append_turn(replace(turn(1), metered=True, reason="the first choice is overloaded"))
    assert ledger.rows("SELECT 1 AS n FROM usage") == []
    assert mine.load().entries == (replace(turn(1), reason="the first choice is overloaded"),)


def test_compactions_and_corrections_are_read_back_where_they_were_made(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    mine = kept(ledger, ledger.take(ref))
    compacted = Compacted(2, 1, 1, f"The key is {SECRET}.", Usage(5, 6), Decimal("0.25"))
    corrected = Corrected(2, 2, "You go in circles.", "c0ffee", 1)
    unpriced = Compacted(3, 2, cost_usd=None)
    mine.append_turn(turn(1))
    mine.append(compacted)
    mine.append(corrected)
    mine.append_turn(turn(2))
    mine.append(unpriced)
    entries = mine.load().entries
    assert entries == (
        turn(1),
        replace(compacted, summary="The key is [redacted]."),
        corrected,
        turn(2),
        unpriced,
    )
    ledger.expire(ref)
    with pytest.raises(LeaseLost):
        mine.append(corrected)


def test_the_files_go_on_from_where_they_were_put_back_to(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    for number, commit in ((1, "aaa"), (2, "bbb")):
        mine.append_turn(turn(number))
        mine.begin_call(number, f"call_{number}", "write_file", {})
        mine.finish_call(f"call_{number}", ToolResult("wrote"), commit)
    assert mine.load().checkpoint == "bbb"
    mine.append(Corrected(3, 2, "Again.", "aaa"))
    assert mine.load().checkpoint == "aaa"
    mine.append_turn(turn(3))
    mine.begin_call(3, "call_3", "write_file", {})
    assert mine.load().checkpoint == "aaa"
    mine.finish_call("call_3", ToolResult("wrote"), "ccc")
    assert mine.load().checkpoint == "ccc"


def test_a_whole_output_is_kept_beside_what_the_model_was_shown(ledger: Ledger) -> None:
    mine = kept(ledger, ledger.take(ledger.task()["work"]))
    mine.append_turn(turn(1))
    for call_id in ("long", "short", "running"):
        mine.begin_call(1, call_id, "run_command", {})
    mine.finish_call("long", ToolResult("äbc…", output=f"äbcdef\0 {SECRET} the end"), None)
    mine.finish_call("short", ToolResult("all of it"), None)
    assert mine.output("long", 0, 3) == "äbc"
    assert mine.output("long", 3, 10**9) == "def\ufffd [redacted] the end"
    assert mine.output("short", 4, 6) == "of"
    assert mine.output("long", 10**6, 10**6 + 5) == ""
    assert mine.output("long", 10**30, 10**30 + 5) == ""
    assert mine.output("running", 0, 5) is None
    assert mine.output("unheard-of", 0, 5) is None
    assert "output" not in str(mine.load().calls[0].result), "a conversation is loaded without it"


def test_leave_comes_back_with_the_digest_of_what_was_shown(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    claimed = ledger.take(ref)
    asked = Ask("call_1", "May it?", ("Approve", "Deny"), WaitingOn.TOOL_APPROVAL, "5" * 64)
    ledger.do(lambda connection: effects.ask(connection, ref, claimed.fence, asked))
    ledger.do(lambda connection: answer.answer(connection, TENANT, "t", "Approve", by="me"))
    found = kept(ledger, ledger.take(ref)).load()
    assert found.answers == {"call_1": "Approve"}
    assert found.digests == {"call_1": "5" * 64}
