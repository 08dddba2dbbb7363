"""What the options before the command say, and the client that follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from orchestrator.core.data_dir import usual
from orchestrator.core.errors import Refused

if TYPE_CHECKING:
    from orchestrator.cli.client import Client
    from orchestrator.config import Settings

_DEFAULT_URL: Final = "http://127.0.0.1:8000"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass
class Session:
    """One invocation."""

    api_url: str | None = None
    api_key_file: Path | None = None
    debug: bool = False


current: Final = Session()


def settings() -> Settings:
    """From the environment; an invalid one is the user's to correct."""
    from pydantic import ValidationError

    from orchestrator.config import Settings

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise Refused(
            "setting-invalid",
            f"The setting {name} is not valid: {first['msg']}.",
            "Correct it in the environment.",
        ) from None


def data_dir(given: Path | None = None) -> Path:
    """The folder that `--data` or the environment names, or the usual one; without reading all settings."""
    named = given or os.environ.get("ORCHESTRATOR_DATA_DIR") or usual(os.environ)
    return Path(named).expanduser().resolve()


def client() -> Client:
    """By flag, environment, the data folder that it names, this user's credentials file: in that order."""
    from orchestrator.cli.client import Client

    known = _known()
    url = current.api_url or os.environ.get("ORCHESTRATOR_API_URL") or known.get("api_url") or _DEFAULT_URL
    key = os.environ.get("ORCHESTRATOR_API_KEY") or None
    if current.api_key_file:
        try:
            key = current.api_key_file.read_text("utf-8").strip()
        except OSError as error:
            raise Refused(
                "key-file-unreadable",
                f"Can't read {current.api_key_file} ({error.strerror}).",
                "Name a file that holds the key alone.",
            ) from error
    if key is None and (url == known.get("api_url") or _host(url) in _LOOPBACK):
        # A stored key is never sent to a server that it isn't for.
        key = known.get("api_key")
    return Client(url.rstrip("/"), key)


def segment(text: str) -> str:
    """One part of a path, whatever it holds."""
    return quote(text, safe="@:")


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _known() -> dict[str, str]:
    import tomllib

    from orchestrator.local import credentials, roster

    folder = data_dir()
    if "ORCHESTRATOR_DATA_DIR" in os.environ and (found := roster.read(folder)) is not None:
        return {"api_url": found.urls.get("api", ""), "api_key": credentials.load_or_make(folder).api_key}
    try:
        return {
            name: str(value)
            for name, value in tomllib.loads(credentials.client_file().read_text("utf-8")).items()
        }
    except (OSError, tomllib.TOMLDecodeError):
        return {}
