"""Installs the agents' programs from their registries: each whole, or not at all.

A program is made in a folder beside its own, tried, and renamed: what bears the name of a version works, and
an installation that was killed leaves nothing but a folder that the next one removes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from orchestrator.agents.programs import Pin, default_root, find, pins, this_platform
from orchestrator.core.errors import Refused, Unavailable

Say = Callable[[str], None]
State = Literal["installed", "missing", "not-here"]
_MAKING: Final = ".making-"
_PATIENCE_SECONDS: Final = 1800
_PROBE_SECONDS: Final = 120
_PIP: Final = ("--quiet", "--disable-pip-version-check", "--no-input")


@dataclass(frozen=True, slots=True)
class Entry:
    """One program and whether it is there; `not-here`: its registry has none for this machine."""

    pin: Pin
    state: State


def listed(root: Path | None = None) -> tuple[Entry, ...]:
    return tuple(Entry(pin, _state(pin, root or default_root())) for pin in pins().values())


def _state(pin: Pin, root: Path) -> State:
    if find(pin.name, root) is not None:
        return "installed"
    return "missing" if pin.runs_here else "not-here"


def install(names: tuple[str, ...], say: Say, root: Path | None = None) -> tuple[str, ...]:
    """Installs these programs and what they need, or all; returns the names of those that this machine can't
    have.

    Raises Refused `agent-program-unknown`, or Unavailable `agent-install-failed`.
    """
    root = root or default_root()
    known = pins()
    for name in names:
        if name not in known:
            raise Refused(
                "agent-program-unknown",
                f"There is no agent program {name!r}.",
                f"There are: {', '.join(known)}.",
            )
    absent = []
    with _alone(root):
        for pin in _ordered(names or tuple(known)):
            match _state(pin, root):
                case "installed":
                    say(f"{pin.name} {pin.version} is installed.")
                case "not-here":
                    absent.append(pin.name)
                    say(f"{pin.name} {pin.version} can't be had for {this_platform()}: left out.")
                case "missing":
                    say(f"Installing {pin.name} {pin.version} (about {pin.size_mb} MB on disk) …")
                    _make(pin, root)
    return tuple(absent)


def _ordered(names: tuple[str, ...]) -> Iterator[Pin]:
    """Each once, after what it needs."""
    seen = set()
    for name in names:
        pin = pins()[name]
        for one in (*(_ordered(pin.needs) if pin.runs_here else ()), pin):
            if one.name not in seen:
                seen.add(one.name)
                yield one


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One installation at a time; what a killed one had begun is removed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in root.glob(f"{_MAKING}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
    except OSError as error:
        raise Unavailable(
            "agent-install-failed",
            f"The folder of the agents' programs can't be written: {root} ({error.strerror or error}).",
            "Make room or give another one: ORCHESTRATOR_AGENTS_DIR=…",
        ) from error


def _make(pin: Pin, root: Path) -> None:
    if pin.source == "extra":
        _pip(pin, sys.executable)
        return
    staged = root / f"{_MAKING}{pin.folder}"
    try:
        _HOW[pin.source](pin, staged, root)
        _try(pin, staged, root)
        staged.rename(root / pin.folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _wheel(pin: Pin, staged: Path, root: Path) -> None:
    del root
    _pip(pin, sys.executable, "--no-deps", "--target", str(staged))


def _npm(pin: Pin, staged: Path, root: Path) -> None:
    node = find("node", root)
    assert node is not None  # noqa: S101 - `needs` came first
    program = Path(node.command[0])
    # The wheel's own `npm` is a link to a file that isn't there.
    npm = program.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    staged.mkdir()
    wanted = dict(package.rsplit("@", 1) for package in pin.packages)
    # Overridden too: what one of them asks for in a range is the other's exact version.
    (staged / "package.json").write_text(
        json.dumps({"private": True, "dependencies": wanted, "overrides": wanted})
    )
    path = f"{program.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _run(
        pin,
        (str(program), str(npm), "install", *options),
        cwd=staged,
        environment={**os.environ, "PATH": path},
    )


def _venv(pin: Pin, staged: Path, root: Path) -> None:
    del root
    _run(pin, (_python_for(pin), "-m", "venv", str(staged)))
    _pip(pin, str(staged / "bin" / "python"))


_HOW: Final[Mapping[str, Callable[[Pin, Path, Path], None]]] = {"wheel": _wheel, "npm": _npm, "venv": _venv}


def _python_for(pin: Pin) -> str:
    """An interpreter that the program runs on; ours when it does."""
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not pin.pythons or ours in pin.pythons:
        return sys.executable
    for version in reversed(pin.pythons):
        if found := shutil.which(f"python{version}"):
            return found
    raise Unavailable(
        "agent-install-failed",
        f"{pin.name} {pin.version} runs on Python {', '.join(pin.pythons)}; this machine has {ours}.",
        f"Install one of them so that python{pin.pythons[-1]} is on PATH.",
    )


def _pip(pin: Pin, python: str, *options: str) -> None:
    _run(pin, (python, "-m", "pip", "install", *_PIP, *options, *pin.packages))


def _try(pin: Pin, staged: Path, root: Path) -> None:
    """Asks the staged program for its version: it must start, and be the one that was wanted."""
    node = find("node", root)
    words = {"folder": str(staged), "node": node.command[0] if node else ""}
    said = _run(pin, tuple(word.format(**words) for word in pin.probe), seconds=_PROBE_SECONDS)
    if pin.version not in said:
        raise Unavailable(
            "agent-install-failed",
            f"{pin.name} says that its version is {said.strip()[:100]!r}, not {pin.version}.",
            "The registry gave something else; nothing was installed.",
        )


def _run(
    pin: Pin,
    command: tuple[str, ...],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = _PATIENCE_SECONDS,
) -> str:
    """What the command prints."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(pin, command, str(error)) from None
    if done.returncode != 0:
        raise _failed(pin, command, done.stderr.strip() or done.stdout.strip())
    return done.stdout


def _failed(pin: Pin, command: tuple[str, ...], said: str) -> Unavailable:
    tail = "\n  ".join(said.splitlines()[-6:]) or "it said nothing"
    program = " ".join(Path(word).name for word in command[:3])
    return Unavailable(
        "agent-install-failed",
        f"{pin.name} {pin.version} could not be installed: {program} failed.\n  {tail}",
        "Mostly no package index can be reached, or the disk is full. Nothing is half done: run it again.",
    )
