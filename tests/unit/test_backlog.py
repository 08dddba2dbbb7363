"""What an agent says while nothing can be written: kept in order, up to a bound."""

from __future__ import annotations

from orchestrator.db.effects import LogChunk
from orchestrator.db.events import EventDraft
from orchestrator.tasks.backlog import Backlog, Batch


def note(name: str) -> EventDraft:
    return EventDraft("progress", name)


def taken(backlog: Backlog) -> Batch:
    batch = backlog.take()
    assert batch is not None
    return batch


def test_nothing_more_is_held_than_the_bound_also_while_it_is_written() -> None:
    backlog = Backlog(str, most_notes=2, most_characters=10)
    assert [backlog.note(note(name)) for name in "abc"] == [True, True, False]
    assert backlog.log("stdout", "x" * 20) == "x" * 14  # each note has two characters
    batch = taken(backlog)
    assert not backlog.note(note("d")), "what is being written takes room"
    assert backlog.log("stdout", "y") == "y"
    backlog.put_back(batch)
    assert not backlog.note(note("d"))
    backlog.written(taken(backlog))
    assert backlog.note(note("d"))
    assert backlog.log("stdout", "y") == ""


def test_what_was_dropped_is_told_where_it_is_missing() -> None:
    backlog = Backlog(str, most_notes=2, most_characters=100)
    backlog.note(note("a"))
    backlog.log("stdout", "one ")
    backlog.drop(notes=3, characters=1234)
    assert not backlog.note(note("b")), "it would seem to come before the gap"
    first = taken(backlog)
    backlog.put_back(first)
    again = taken(backlog)
    assert [event.name for event in again.events] == ["a"]
    assert list(again.told) == [
        LogChunk("stdout", "one "),
        LogChunk("system", "… 3 notes and 1,234 characters of output dropped while the database was away\n"),
    ]
    backlog.written(again)
    backlog.log("stdout", "two")
    assert list(taken(backlog).told) == [LogChunk("stdout", "two")], "it is told once"


def test_an_aside_goes_with_the_next_batch_and_makes_none() -> None:
    backlog = Backlog(str)
    backlog.mention(note("agent"))
    assert backlog.take() is None
    backlog.note(note("turn"))
    assert [event.name for event in taken(backlog).events] == ["agent", "turn"]


def test_output_is_gathered_in_chunks_of_one_stream() -> None:
    backlog = Backlog(str)
    for stream, text in (("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")):
        assert backlog.log(stream, text) == ""
    kept = [(chunk.stream, chunk.text) for chunk in taken(backlog).logs]
    assert kept == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_a_line_that_is_being_said_waits_for_its_end_and_takes_its_room() -> None:
    backlog = Backlog(str, most_characters=10)
    backlog.log("stdout", "one\ntw")
    first = backlog.take(waits=3600)
    assert first is not None
    assert list(first.told) == [LogChunk("stdout", "one\n")]
    backlog.put_back(first)
    backlog.log("stdout", "o\n")
    assert list(taken(backlog).told) == [LogChunk("stdout", "one\n"), LogChunk("stdout", "two\n")]
    assert backlog.log("stdout", "123") == "3"


def test_a_word_whose_end_was_dropped_is_not_shown() -> None:
    backlog = Backlog(str, most_characters=12)
    rest = backlog.log("stdout", "the key: sk-ant-secret")
    backlog.drop(characters=len(rest))
    assert next(iter(taken(backlog).told)) == LogChunk("stdout", "the key: ")
