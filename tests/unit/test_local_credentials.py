from __future__ import annotations

import stat
import string
import zlib
from typing import TYPE_CHECKING

import pytest

from orchestrator.core.errors import Unavailable
from orchestrator.local import credentials

if TYPE_CHECKING:
    from pathlib import Path

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def test_secrets_are_made_once_and_then_stay(tmp_path: Path) -> None:
    first = credentials.load_or_make(tmp_path)
    assert credentials.load_or_make(tmp_path) == first


def test_two_installations_share_no_secret(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = credentials.load_or_make(tmp_path / "a"), credentials.load_or_make(tmp_path / "b")
    assert one.postgres_password != other.postgres_password
    assert one.message_secret != other.message_secret
    assert one.api_key != other.api_key


def test_only_the_owner_reads_the_file_even_after_somebody_opened_it(tmp_path: Path) -> None:
    credentials.load_or_make(tmp_path)
    file = tmp_path / credentials.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    credentials.load_or_make(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_damaged_file_is_an_error_and_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / credentials.FILE
    file.write_text("postgres_password = ")
    with pytest.raises(Unavailable, match="credentials-damaged"):
        credentials.load_or_make(tmp_path)
    assert file.read_text() == "postgres_password = "


def test_an_api_key_ends_with_the_checksum_of_what_is_before() -> None:
    key = credentials.new_api_key()
    body, checksum = key[:-6], key[-6:]
    assert body.startswith("ork_live_")
    assert len(key.removeprefix("ork_live_")) == 8 + 1 + 32 + 6
    value = 0
    for digit in checksum:
        value = value * 62 + _BASE62.index(digit)
    assert value == zlib.crc32(body.encode())


def test_a_credentials_file_that_the_user_wrote_is_left_alone(tmp_path: Path) -> None:
    made = credentials.load_or_make(tmp_path)
    theirs = tmp_path / "config" / "credentials.toml"
    theirs.parent.mkdir()
    theirs.write_text('api_key = "mine"\n')
    assert not credentials.tell_clients(theirs, made, api_url="http://127.0.0.1:1", flower_url=None)
    assert theirs.read_text() == 'api_key = "mine"\n'
