"""The secrets of one installation: made at its first start, kept in its data folder, for its owner alone."""

from __future__ import annotations

import os
import secrets
import string
import tempfile
import tomllib
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from orchestrator.core.errors import Unavailable

FILE: Final = "credentials.toml"
FLOWER_USER: Final = "operator"

_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_OURS: Final = "# Written by `orchestrator up`."


@dataclass(frozen=True, slots=True)
class Credentials:
    """All of them random; none has a default."""

    postgres_password: str
    redis_password: str
    message_secret: str
    api_key: str
    flower_password: str


def load_or_make(folder: Path) -> Credentials:
    """Those of this data folder."""
    path = folder / FILE
    try:
        path.chmod(0o600)
        return Credentials(**tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        made = Credentials(
            postgres_password=secrets.token_urlsafe(24),
            redis_password=secrets.token_urlsafe(24),
            message_secret=secrets.token_urlsafe(32),
            api_key=new_api_key(),
            flower_password=secrets.token_urlsafe(18),
        )
        _write(path, asdict(made))
        return made
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise Unavailable(
            "credentials-damaged",
            f"{path} is not what `orchestrator up` wrote ({error}).",
            "Restore it from a backup: the embedded Postgres and Redis take only these passwords.",
        ) from error


def new_api_key() -> str:
    """`ork_live_<8>_<32><6>`: the last six are a checksum, which tells a mistyped key without a server."""
    body = f"ork_live_{_random(8)}_{_random(32)}"
    return body + _base62(zlib.crc32(body.encode())).rjust(6, "0")


def client_file(home: Path | None = None) -> Path:
    """Where clients of this user look for keys."""
    base = os.environ.get("XDG_CONFIG_HOME") if home is None else None
    return (Path(base) if base else (home or Path.home()) / ".config") / "orchestrator" / FILE


def tell_clients(path: Path, credentials: Credentials, *, api_url: str, flower_url: str | None) -> bool:
    """Writes what this user's clients need. False, and nothing written, when the file there is not ours."""
    if path.exists() and not path.read_text("utf-8").startswith(_OURS):
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {"api_url": api_url, "api_key": credentials.api_key}
    if flower_url:
        known |= {
            "flower_url": flower_url,
            "flower_user": FLOWER_USER,
            "flower_password": credentials.flower_password,
        }
    _write(path, known)
    return True


def _write(path: Path, values: dict[str, str]) -> None:
    """A file made by mkstemp is private from the first moment. No value of ours needs escaping."""
    descriptor, beside = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{_OURS} Keep it to yourself.\n")
        file.writelines(f'{name} = "{value}"\n' for name, value in values.items())
    Path(beside).replace(path)


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _base62(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits
