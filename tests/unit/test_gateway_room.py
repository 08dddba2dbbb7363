"""How much of callers' requests a gateway holds."""

from __future__ import annotations

from orchestrator.gateway.room import Room


def test_a_run_gets_a_quarter_of_the_room_and_gives_it_back() -> None:
    room = Room(longest=10, most=100)
    with room.enter("a", 9) as first, room.enter("a", 9) as second:
        assert first is not None
        assert second is not None
        assert first.take(20)
        assert not second.take(6), "25 are the run's"
        assert second.take(5)
    with room.enter("a", 9) as again:
        assert again is not None
        assert again.take(25)


def test_all_runs_together_get_the_room_and_no_more() -> None:
    room = Room(longest=10, most=100)
    with room.enter("a", 9) as a, room.enter("b", 9) as b, room.enter("c", 9) as c, room.enter("d", 9) as d:
        for place in (a, b, c, d):
            assert place is not None
            assert place.take(25)
        with room.enter("e", 9) as late:
            assert late is not None
            assert not late.take(1)


def test_a_run_has_so_many_requests_under_way() -> None:
    room = Room(longest=10)
    with room.enter("a", 1) as first:
        assert first is not None
        with room.enter("a", 1) as second, room.enter("b", 1) as other:
            assert second is None
            assert other is not None
    with room.enter("a", 1) as again:
        assert again is not None


def test_there_is_room_for_the_longest_body_that_is_allowed() -> None:
    with Room(longest=1000, most=100).enter("a", 9) as place:
        assert place is not None
        assert place.take(1000)
