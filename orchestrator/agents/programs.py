"""The agents' programs: which version of each is wanted, and where on this machine it is.

`orchestrator agent install` puts each into `<root>/<name>-<version>`, so that two versions can lie side by
side and nothing is changed under a running agent.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

ROOT_VARIABLE: Final = "ORCHESTRATOR_AGENTS_DIR"
_PINS: Final = Path(__file__).parents[1] / "data" / "agents.toml"


@dataclass(frozen=True, slots=True)
class Pin:
    """One program as `data/agents.toml` describes it. `packages` are in the words of their registry."""

    name: str
    version: str
    source: Literal["wheel", "npm", "venv", "extra"]
    packages: tuple[str, ...]
    size_mb: int
    command: tuple[str, ...] = ()
    probe: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def runs_here(self) -> bool:
        """Whether the registry has it for this machine."""
        return not self.platforms or this_platform() in self.platforms


@dataclass(frozen=True, slots=True)
class Program:
    """An installed program. A sandbox must let it read `folders`."""

    name: str
    version: str
    command: tuple[str, ...]
    probe: tuple[str, ...]
    folders: tuple[Path, ...]


def this_platform() -> str:
    """e.g. linux-x86_64, darwin-arm64."""
    return f"{platform.system()}-{platform.machine()}".lower()


def default_root() -> Path:
    """Outside every checkout: the programs are large, and all checkouts share them."""
    chosen = os.environ.get(ROOT_VARIABLE)
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{cache_home}/orchestrator/agents").expanduser().absolute()


@cache
def pins() -> Mapping[str, Pin]:
    with _PINS.open("rb") as file:
        return {name: _pin(name, entry) for name, entry in tomllib.load(file).items()}


def _pin(name: str, entry: Mapping[str, Any]) -> Pin:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return Pin(name=name, **fields)


def find(name: str, root: Path | None = None) -> Program | None:
    """The wanted version of a program, with all that it needs; None if it isn't installed."""
    pin, root = pins()[name], root or default_root()
    if pin.source == "extra":
        return _bundled(pin)
    needed = [find(other, root) for other in pin.needs]
    folder = root / pin.folder
    if not folder.is_dir() or None in needed:
        return None
    found = {program.name: program.command[0] for program in needed if program is not None}
    return Program(
        name,
        pin.version,
        _filled(pin.command, folder, found),
        _filled(pin.probe, folder, found),
        (folder, *(inner for program in needed if program is not None for inner in program.folders)),
    )


def _filled(words: tuple[str, ...], folder: Path, programs: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word.format(folder=folder, **programs) for word in words)


def _bundled(pin: Pin) -> Program | None:
    """The program in the SDK's wheel; the SDK itself isn't imported, which would take most of a second."""
    spec = find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return None
    executable = Path(spec.origin).parent / "_bundled" / "claude"
    if not executable.is_file():
        return None
    return Program(
        pin.name, pin.version, (str(executable),), (str(executable), "--version"), (executable.parent,)
    )
