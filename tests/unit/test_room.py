"""Bounds on what a step's files take; of a disk, what it has left is a parameter here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.workspaces import room
from orchestrator.workspaces.room import Disk, Room, RoomBounds, check_disk

MB = 1024**2
FREE = Disk(free=10**12, inodes=10**9, floor=0, inode_floor=0)
SMALL = RoomBounds(bytes=2 * MB, files=100)


@pytest.fixture(autouse=True)
def _asks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "EVERY", 0.0)
    monkeypatch.setattr(room, "AGAIN", 0.0)


def fill(at: Path, files: int, each: int) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (at / str(number)).write_bytes(b"x" * each)
    return at


def code(of: Room) -> str | None:
    fault = of.fault()
    return fault.code if fault else None


def on(disk: Disk) -> Callable[[Path, RoomBounds], Disk]:
    return lambda _at, _bounds: disk


def test_many_small_files_are_too_much_together(tmp_path: Path) -> None:
    asked = Room([tmp_path], SMALL, on(FREE))
    fill(tmp_path / "a" / "b", 10, 100_000)
    assert code(asked) is None
    fill(tmp_path / "c", 20, 100_000)
    assert code(asked) == "workspace-too-large"
    (tmp_path / "c").rename(tmp_path.with_name("away"))
    with pytest.raises(WorkspaceFault) as raised:
        asked.check_size()
    assert raised.value.error is ErrorClass.LIMIT, "no attempt helps"


def test_empty_files_use_up_inodes_and_count(tmp_path: Path) -> None:
    fill(tmp_path, 101, 0)
    assert code(Room([tmp_path], SMALL, on(FREE))) == "workspace-too-large"


def test_a_file_of_two_names_counts_once_and_what_a_link_leads_to_not_at_all(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", 1, 3 * MB)
    inside = fill(tmp_path / "inside", 1, MB + MB // 2)
    (inside / "again").hardlink_to(inside / "0")
    (inside / "link").symlink_to(outside)
    assert code(Room([inside], SMALL, on(FREE))) is None
    assert code(Room([inside, outside], SMALL, on(FREE))) == "workspace-too-large"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_what_is_closed_to_us_counts_as_what_the_disk_has_lost(tmp_path: Path) -> None:
    _assert_counts_as_lost(fill(tmp_path / "closed", 1, 1), lambda at: at.chmod(0))


def test_what_lies_too_deep_counts_as_what_the_disk_has_lost(tmp_path: Path) -> None:
    def bury(at: Path) -> None:
        here = os.open(at, os.O_RDONLY)
        for _ in range(30):
            os.mkdir("x" * 200, dir_fd=here)
            deeper = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        os.close(here)

    _assert_counts_as_lost(fill(tmp_path / "deep", 1, 1), bury)


def _assert_counts_as_lost(at: Path, hide: Callable[[Path], None]) -> None:
    left = [10**12, 10**12 - 3 * MB]
    asked = Room([at.parent], SMALL, lambda _at, _bounds: Disk(left[0], 10**9, 0, 0))
    assert code(asked) is None
    hide(at)
    left.pop(0)
    found = code(asked)
    at.chmod(0o700)
    assert found == "workspace-too-large"


def test_on_a_disk_that_fills_up_the_biggest_writer_is_ended_first(tmp_path: Path) -> None:
    left = Disk(free=10 * MB, inodes=10**9, floor=8 * MB, inode_floor=0)
    bounds = RoomBounds()

    def ask(_at: Path, _bounds: RoomBounds) -> Disk:
        return left

    found_there, big, small = (fill(tmp_path / name, 1, 6 * MB) for name in ("found", "big", "small"))
    rooms = [Room([at], bounds, ask) for at in (found_there, big, small)]
    assert [code(each) for each in rooms] == [None, None, None]
    fill(big / "more", 1, 7 * MB)
    fill(small / "more", 1, MB)
    left = Disk(free=6 * MB, inodes=10**9, floor=8 * MB, inode_floor=0)
    assert [code(each) for each in rooms] == [None, "disk-full", None]
    left = Disk(free=MB, inodes=10**9, floor=8 * MB, inode_floor=0)
    assert [code(each) for each in rooms] == ["disk-full"] * 3, "what nobody's files show fills it too"
    left = FREE
    assert [code(each) for each in rooms] == [None, None, None], "there is room again"


def test_a_large_tree_is_looked_through_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SLICE", -1.0)
    for number in range(50):
        fill(tmp_path / str(number), 2, 0)
    asked = Room([tmp_path], RoomBounds(files=140), on(FREE))
    looks = 1
    while code(asked) is None:
        looks += 1
    assert looks > 20


def test_nothing_begins_on_a_disk_that_is_full(tmp_path: Path) -> None:
    check_disk(tmp_path, RoomBounds(free_bytes=0))
    with pytest.raises(WorkspaceFault, match="are left on the worker's disk") as raised:
        check_disk(tmp_path, RoomBounds(free_bytes=10**18, free_share=1))
    assert (raised.value.code, raised.value.error) == ("disk-full", ErrorClass.STORAGE), "it is tried again"
