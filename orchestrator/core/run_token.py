"""The form of run tokens: `ort_` and 256 random bits. Only their SHA-256 is kept."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

PREFIX: Final = "ort_"


def new() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
