"""How fast the stream parser reads, and whether anything makes it fall: real code, no servers.

python -m tests.benchmarks.parsing --seconds N [--seed S]     the fuzz run of `scripts/fuzz-parser`
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from orchestrator.engine.parsing.calls import CallParser
from orchestrator.engine.parsing.shape import shapes
from orchestrator.engine.ports import CallCompleted, StreamEvent, TextDelta
from orchestrator.engine.tools import TOOLS

SCHEMAS: Final = [tool.schema() for tool in TOOLS.values()]
CHUNK: Final = 4096
ENOUGH_MB_PER_SECOND: Final = 10.0
_SHAPES: Final = shapes(SCHEMAS)


def _prose() -> str:
    return "First I look at what is there: if a < b, then <b>this</b> can't hold.\n" * 6


def _file(lines: int) -> str:
    return "".join(f"    total = total + values[{line}]  # <content> </content>\n" for line in range(lines))


def _read() -> str:
    return _SHAPES["read_file"].spelled({"path": "src/module.py", "start": 10, "end": 200})


def _write(lines: int) -> str:
    return _SHAPES["write_file"].spelled({"path": "src/module.py", "content": _file(lines)})


def _reply() -> str:
    """What a model's reply looks like: some words, a few files read, one written."""
    return "\n".join((_prose(), _read(), _read(), _prose(), _write(60), _prose()))


TEXTS: Final[Mapping[str, Callable[[], str]]] = {
    "replies": _reply,
    "prose": _prose,
    "one large file": lambda: _write(100_000),
    "brackets": lambda: "<" * CHUNK,
    "half openings": lambda: "<write_file>" + " " * 64,
    "closings": lambda: "</content></write_file>",
    "small calls alone": lambda: f"{_read()}\n",
}


@dataclass(frozen=True, slots=True)
class Found:
    """MB/s of one core's time by kind of text, each the median of three."""

    speeds: Mapping[str, float]


def measure(size: int = 5_000_000, rounds: int = 3) -> Found:
    return Found({name: _speed(make(), size, rounds) for name, make in TEXTS.items()})


def _speed(unit: str, size: int, rounds: int) -> float:
    data = (unit * (size // len(unit) + 1)).encode()[:size]
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return size / 1_000_000 / median(_seconds(pieces) for _ in range(rounds))


def _seconds(pieces: Sequence[bytes]) -> float:
    parser = CallParser(SCHEMAS)
    began = time.process_time()
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return time.process_time() - began


def fuzz(seconds: float, seed: int, say: Callable[[str], None] = print) -> int:
    """Random texts, each read whole and in random pieces; how many. AssertionError when they differ."""
    chance, count, began, told = random.Random(seed), 0, time.monotonic(), 0.0
    while (at_work := time.monotonic() - began) < seconds:
        data = _soup(chance)
        whole, cut = _understood([data]), _understood(_pieces(data, chance))
        assert whole == cut, f"seed {seed}, text {count}: {data!r}"
        count += 1
        if at_work > told + 30:
            told = at_work
            say(f"{count:,} texts in {at_work:.0f} s")
    return count


_WORDS: Final = [
    *(f"<{name}>" for name in _SHAPES),
    *(f"</{name}>" for name in _SHAPES),
    *(f"<{name}>" for shape in _SHAPES.values() for name in shape.parameters),
    *(f"</{name}>" for shape in _SHAPES.values() for name in shape.parameters),
    *("\n", " ", "\r\n", "a.py", "3", "true", '{"a": [', "é", "😀", "<", ">", "</", "\0", " " * 64, " " * 65),
    *(_read(), _write(1), "<write_file><path>", "</content>\n</write_file>", "<result>", "```xml\n"),
]


def _soup(chance: random.Random) -> bytes:
    words = [chance.choice(_WORDS) for _ in range(chance.randrange(60))]
    data = bytearray("".join(words).encode())
    for _ in range(chance.randrange(4) if data else 0):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 40)))
    return (data[start:end] for start, end in pairwise([0, *cuts, len(data)]))


def _understood(pieces: Sequence[bytes] | Iterator[bytes]) -> list[object]:
    """Texts joined, calls without their ids."""
    parser, told = CallParser(SCHEMAS), list[object]()
    events: list[StreamEvent] = [event for piece in pieces for event in parser.feed(piece)]
    for event in [*events, *parser.finish()]:
        if isinstance(event, CallCompleted):
            told.append((event.name, event.arguments))
        elif isinstance(event, TextDelta):
            earlier = told.pop() if told and isinstance(told[-1], str) else ""
            told.append(f"{earlier}{event.text}")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz-parser")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to have it again")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    count = fuzz(options.seconds, seed, lambda said: print(said, flush=True))
    print(f"{count:,} texts: none made it raise, none was read otherwise in pieces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
