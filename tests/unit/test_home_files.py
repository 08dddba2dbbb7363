"""What the worker does with files in an agent's HOME, which the agent may have changed into anything."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from orchestrator.agents import home_files

CONFIG = PurePosixPath(".codex/config.toml")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    at = tmp_path / "home"
    at.mkdir()
    return at


def test_a_file_is_written_with_its_folders_and_written_anew(home: Path) -> None:
    home_files.write(home, CONFIG, ["one\n", "two\n"])
    home_files.write(home, CONFIG, ["three\n"])
    assert (home / CONFIG).read_text() == "three\n"
    assert home_files.count_lines(home, CONFIG) == 1
    assert [at.name for at in (home / ".codex").iterdir()] == ["config.toml"]


def test_a_link_in_the_file_s_place_is_replaced_and_what_it_leads_to_stays(home: Path) -> None:
    keys = home.parent / "authorized_keys"
    keys.write_text("real keys\n")
    (home / ".codex").mkdir()
    (home / CONFIG).symlink_to(keys)
    assert home_files.count_lines(home, CONFIG) == 0
    home_files.write(home, CONFIG, ["ours\n"])
    assert keys.read_text() == "real keys\n"
    assert (home / CONFIG).read_text() == "ours\n"
    assert not (home / CONFIG).is_symlink()


def test_a_linked_folder_is_refused(home: Path) -> None:
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    (home / ".codex").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"directory|links"):
        home_files.write(home, CONFIG, ["ours\n"])
    assert list(elsewhere.iterdir()) == []


@pytest.mark.timeout(10)
def test_a_pipe_holds_nobody_up(home: Path) -> None:
    (home / ".codex").mkdir()
    os.mkfifo(home / CONFIG)
    assert home_files.count_lines(home, CONFIG) == 0
    home_files.write(home, CONFIG, ["ours\n"])
    assert (home / CONFIG).read_text() == "ours\n"


def test_only_what_lasts_is_left_and_no_link_is_followed(home: Path) -> None:
    outside = home.parent / "outside"
    outside.mkdir()
    for at in (outside, home / ".codex/sessions/2026", home / ".codex/rules", home / ".config"):
        at.mkdir(parents=True, exist_ok=True)
        (at / "file").touch()
    (home / ".codex/state.sqlite").touch()
    (home / ".codex/config.toml").symlink_to(outside / "file")
    (home / ".local").symlink_to(outside)
    (home / ".codex/linked.sqlite").symlink_to(outside / "file")
    kept = [PurePosixPath(path) for path in (".codex/sessions", ".codex/*.sqlite", ".local/share")]
    home_files.keep_only(home, kept)
    left = sorted(str(at.relative_to(home)) for at in home.rglob("*") if not at.is_dir())
    assert left == [".codex/sessions/2026/file", ".codex/state.sqlite"]
    assert (outside / "file").exists()


@pytest.mark.parametrize("place", ["../outside", "{outside}", "/{outside}", ".codex/../../outside"])
def test_a_path_that_leads_out_is_refused(home: Path, place: str) -> None:
    """Names may be an agent's; where one begins with a slash, what stands before it counts for nothing."""
    outside = home.parent / "outside"
    outside.mkdir()
    with pytest.raises(OSError, match="leads out"):
        home_files.write(home, PurePosixPath(".codex") / place.format(outside=outside) / "x", ["ours\n"])
    assert list(outside.iterdir()) == []
