"""Which kinds of agent this machine can run now, and what is missing for the others."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.agents import programs
from orchestrator.agents.programs import Program
from orchestrator.agents.types import AGENT_TYPES, AgentType

PROBE_SECONDS: Final = 30.0
_SEEN: Final = ".probed.json"
_KEY_OF: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that keeps a kind of agent from working, and what to do about it."""

    what: str
    do: str


NO_KEY: Final = "no key for a model"
"""Of no living gateway: no other worker has one either."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of one kind of agent on this machine; `version` is what its program says."""

    kind: AgentType
    missing: tuple[Missing, ...] = ()
    version: str | None = None

    @property
    def is_usable(self) -> bool:
        return not self.missing


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What agents find here. `providers`: whose models can be reached, with a key or through the gateway;
    `agentapi_url`: where coder/agentapi listens, if that is wanted; `root`: of the programs."""

    providers: frozenset[str]
    agentapi_url: str | None = None
    root: Path | None = None


def shown(one: Readiness) -> dict[str, Any]:
    """As the doors show it: JSON-able."""
    kind = one.kind
    return {
        "name": kind.name,
        "label": kind.label,
        "usable": one.is_usable,
        "version": one.version,
        "grade": kind.grade,
        "protocol": kind.protocol,
        "strengths": kind.strengths,
        "specialties": sorted(kind.specialties),
        "capabilities": sorted(kind.capabilities),
        "lacks": kind.lacks,
        "providers": list(kind.providers),
        "missing": [{"what": gap.what, "do": gap.do} for gap in one.missing],
    }


def readiness(here: Surroundings, names: Iterable[str] = AGENT_TYPES) -> tuple[Readiness, ...]:
    """Of each kind. Programs are asked for their version once, all at a time; a broken one takes
    PROBE_SECONDS at most."""
    kinds = [AGENT_TYPES[name] for name in names]
    root = here.root or programs.default_root()
    with ThreadPoolExecutor(max_workers=4) as pool:
        return tuple(pool.map(lambda kind: _readiness(kind, here, root), kinds))


def _readiness(kind: AgentType, here: Surroundings, root: Path) -> Readiness:
    missing = [*_no_provider(kind, here)]
    if kind.name == "agentapi" and here.agentapi_url is None:
        missing.append(Missing("no server is named", "Set AGENTAPI_URL, e.g. http://localhost:3284."))
    if kind.program is None:
        return Readiness(kind, tuple(missing))
    program = programs.find(kind.program, root)
    if program is None:
        return Readiness(kind, (*_not_installed(kind.program), *missing))
    version, fault = probe(program, root)
    if fault is not None:
        missing.insert(0, Missing(fault, f"Reinstall it: {_install(kind.program)}"))
    return Readiness(kind, tuple(missing), version)


def _no_provider(kind: AgentType, here: Surroundings) -> Iterable[Missing]:
    if kind.providers and not here.providers & set(kind.providers):
        keys = " or ".join(_KEY_OF[name] for name in kind.providers)
        yield Missing(NO_KEY, f"Set {keys} where the gateway runs, then: orchestrator restart gateway")


def _not_installed(name: str) -> Iterable[Missing]:
    pin = programs.pins()[name]
    if pin.runs_here:
        yield Missing("not installed", _install(name))
    else:
        yield Missing(f"there is none for {programs.this_platform()}", "Use another kind of agent.")


def _install(name: str) -> str:
    return f"orchestrator agent install {name}, then restart: orchestrator restart worker"


def probe(program: Program, root: Path) -> tuple[str | None, str | None]:
    """Its version, and what is wrong with it. A program that hasn't changed is not asked again."""
    key, seen = _mark(program), _read(root)
    if key in seen:
        return str(seen[key]), None
    try:
        done = subprocess.run(
            program.probe,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")},
        )
    except subprocess.TimeoutExpired:
        return None, f"it doesn't say its version within {PROBE_SECONDS:.0f} s"
    except OSError as error:
        return None, f"it can't be started ({error.strerror})"
    if done.returncode != 0:
        return None, f"it doesn't say its version (exit code {done.returncode})"
    version = _version(done.stdout)
    _remember(root, key, version)
    return version, None


def _version(said: str) -> str:
    """The word of the first line that looks like one; programs put their name before or after it."""
    words = (said.splitlines() or [""])[0].split()
    return next(
        (word.strip("(),v") for word in words if word.strip("(),v")[:1].isdigit()), " ".join(words)[:40]
    )


def _mark(program: Program) -> str:
    files = [Path(word) for word in program.probe if word.startswith("/")]
    return " ".join(f"{path}@{_changed(path)}" for path in files)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(root: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((root / _SEEN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(root: Path, key: str, version: str) -> None:
    """Where it can't be written the program is asked again next time."""
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        new = root / f"{_SEEN}.{os.getpid()}"
        new.write_text(json.dumps({**_read(root), key: version}))
        new.replace(root / _SEEN)
