"""How much of callers' requests a gateway holds."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

from orchestrator.gateway.dialects import MOST_PARTS
from orchestrator.gateway.room import PART_BYTES, Place, Room

SHARE = 64 * 1024 * 1024
RUNS = 8


def entered(stack: ExitStack, room: Room, whose: str) -> Place:
    place = stack.enter_context(room.enter(whose, 9))
    assert place is not None
    return place


def test_a_run_gets_its_share_of_the_room_and_gives_it_back() -> None:
    room = Room(longest=10)
    with ExitStack() as stack:
        first, second = entered(stack, room, "a"), entered(stack, room, "a")
        assert first.take(SHARE - 5)
        assert not second.take(6)
        assert second.take(5)
    with ExitStack() as stack:
        assert entered(stack, room, "a").take(SHARE)


def test_all_runs_together_get_the_room_and_no_more() -> None:
    room = Room(longest=10)
    with ExitStack() as stack:
        assert all(entered(stack, room, str(number)).take(SHARE) for number in range(RUNS))
        assert not entered(stack, room, "late").take(1)


def test_a_run_has_so_many_requests_under_way() -> None:
    room = Room(longest=10)
    with room.enter("a", 1) as first:
        assert first is not None
        with room.enter("a", 1) as second, room.enter("b", 1) as other:
            assert second is None
            assert other is not None
    with room.enter("a", 1) as again:
        assert again is not None


def test_each_share_has_room_for_the_longest_body_whatever_is_in_it() -> None:
    longest = 1024**3
    with ExitStack() as stack:
        room = Room(longest)
        for whose in itertools.islice("abcdefghij", RUNS):
            place = entered(stack, room, whose)
            assert place.take(longest)
            assert place.take(MOST_PARTS * PART_BYTES)
