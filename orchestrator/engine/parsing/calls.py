"""Tool calls that a model writes as tags in its text, found while the text arrives.

    I'll look first.
    <read_file>
    <path>a.py</path>
    </read_file>

The rules, which make the same of a text however it was cut into pieces:

- A call begins where the tag of a known tool is followed by the tag of one of its parameters, or is closed
  at once. Between two tags that belong together there may be at most 64 blanks. All else is text.
- A value ends at the first closing tag of its parameter that is followed by the call's own closing tag or by
  a parameter not given yet. So `</content>` in a file's content is content, and so is what looks like markup.
- Inside a value, what begins like another call of the same tool is one, and its closing tags are its own: a
  file may hold a whole example of the call that writes it. If by this rule the value has no end, and the
  model ended its reply itself, the example was none: the value is read once more, without this rule, which
  stays off for the rest of the reply.
- A call that never ends is kept as `{"unparsed_json": its text}`, which every tool refuses.

Nothing raises, whatever comes; the work grows with the length of the text alone.
"""

from __future__ import annotations

import codecs
import uuid
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, Final

from orchestrator.engine.parsing.marks import Marks
from orchestrator.engine.parsing.open_call import OpenCall
from orchestrator.engine.parsing.shape import shapes
from orchestrator.engine.ports import CallAnnounced, CallCompleted, StreamEvent, TextDelta
from orchestrator.engine.untrusted import storable

UNPARSED: Final = "unparsed_json"
"""The one argument of a call that can't be read: its beginning, as it was written."""
_SHOWN: Final = 2000


class CallParser:
    """Fed with pieces in order, then finished, it tells what is in them as soon as it is sure.

    `tools` are schemas as the Messages API wants them. Bytes may be cut inside a character.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]]) -> None:
        self._shapes = shapes(tools)
        self._openings = Marks({shape.opening: shape.followers for shape in self._shapes.values()})
        unique = uuid.uuid4().hex[:20]
        self._ids = (f"call_{unique}_{number}" for number in count(1))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._call: OpenCall | None = None
        self._nests = True

    def feed(self, piece: str | bytes) -> list[StreamEvent]:
        text = piece if isinstance(piece, str) else self._decoder.decode(piece)
        return self._read(self._rest + text)

    def finish(self, *, cut_off: bool = False) -> list[StreamEvent]:
        """What the end of the reply decides; `cut_off`: it was not the model that ended it."""
        events = self.feed(self._decoder.decode(b"", final=True))
        if self._call is not None and self._call.nested and not cut_off:
            self._nests = False
            events += self._read(self._call.again() + self._rest)
        if self._call is not None:
            written = self._call.written() + self._rest
            events.append(self._completed(self._call, {UNPARSED: storable(written[:_SHOWN])}))
        elif self._rest:
            events.append(TextDelta(storable(self._rest)))
        self._rest, self._call = "", None
        return events

    def _read(self, text: str) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        at: int | None = 0
        while at is not None:
            if self._call is None:
                at = self._read_text(text, at, events)
            else:
                at = self._read_call(self._call, text, at, events)
        return events

    def _read_text(self, text: str, start: int, events: list[StreamEvent]) -> int | None:
        """Where to go on; None when more text is needed."""
        mark = self._openings.find(text, start)
        upto = mark.start if mark else self._openings.undecided(text, start)
        if upto > start:
            events.append(TextDelta(storable(text[start:upto])))
        if mark is None:
            self._rest = text[upto:]
            return None
        call = OpenCall(self._shapes[mark.head[1:-1]], mark.follower)
        events.append(CallAnnounced(call.shape.name))
        if mark.follower == call.shape.closing:
            events.append(self._completed(call, {}))
        else:
            self._call = call
        return mark.end

    def _read_call(self, call: OpenCall, text: str, start: int, events: list[StreamEvent]) -> int | None:
        read = call.read(text, start, nests=self._nests)
        if read.needed:
            self._rest = text[read.upto :]
            return None
        if read.ended:
            self._call = None
            events.append(self._completed(call, call.arguments()))
        return read.upto

    def _completed(self, call: OpenCall, arguments: Mapping[str, Any]) -> StreamEvent:
        return CallCompleted(next(self._ids), call.shape.name, arguments)
