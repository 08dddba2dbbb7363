"""What is kept of a past that is summed up has a bound, however much there was."""

from __future__ import annotations

from orchestrator.engine.memory import Memory


def test_of_thousands_of_messages_and_files_the_latest_are_told_and_the_rest_counted() -> None:
    memory = Memory()
    for number in range(3000):
        memory.hear(f"message {number} " + "x" * 5000)
        memory.answers.append((f"question {number}", "y" * 5000))
        memory.files[f"src/{number}/{'z' * 200}"] = "write_file"

    text = memory.as_text()

    assert len(text) < 100_000
    for latest in ("message 2999 ", "question 2999", "'src/2999/"):
        assert latest in text
    for first in ("message 0 ", "question 0", "'src/0/"):
        assert first not in text
    assert text.count("are left out here") == 3
    assert len(memory.evidence()["files"]) == len(memory.heard) == 3000, "nothing is forgotten"


def test_what_fits_is_told_whole_and_in_its_order() -> None:
    memory = Memory()
    for text in ("one", "two", "three"):
        memory.hear(text)
    said = [f"The person who watches said: {text}" for text in ("one", "two", "three")]
    assert memory.as_text().splitlines() == said
