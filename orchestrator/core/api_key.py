"""The form of API keys, `ork_live_<8 id>_<32 secret><6 checksum>`: a typing error shows without a server."""

from __future__ import annotations

import re
import string
import zlib
from typing import Final

SHORTEST: Final = 32
"""Keys of another form are taken if somebody configured one, but not if they can be guessed."""

_FORM: Final = re.compile(r"(ork_[a-z]+_([0-9A-Za-z]{8})_[0-9A-Za-z]{32})([0-9A-Za-z]{6})")
_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase


def mistyped(key: str) -> bool:
    """True for what begins like a key of ours and can't be one."""
    if not key.startswith("ork_"):
        return False
    found = _FORM.fullmatch(key)
    return found is None or found.group(3) != checksum(found.group(1))


def prefix(key: str) -> str:
    """What may be shown of a key."""
    found = _FORM.fullmatch(key)
    return f"{key[: key.index(found.group(2))]}{found.group(2)}" if found else f"{key[:4]}…"


def checksum(body: str) -> str:
    """CRC-32 of all before it, six digits of base 62."""
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits.rjust(6, "0")
