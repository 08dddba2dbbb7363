"""How git reaches a repository that isn't ours: by which protocol, at which address, with what forbidden.

A name is resolved once; when policy forbids private addresses git is held to the answers that were checked,
so a name that changes its address in between gains nothing.
"""

from __future__ import annotations

import ipaddress
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core.errors import Refused
from orchestrator.core.repository_url import RepositoryUrl, check, is_public
from orchestrator.workspaces.errors import RepositoryForbidden, RepositoryUnreachable

# A local repository's own settings are a stranger's: what could run something on reading or writing it is
# overruled where nothing overrules it again, on the command line of the program that serves it.
_SERVED: Final = (
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.alternateRefsCommand=true",
    "uploadpack.allowAnySHA1InWant=true",
    "receive.denyCurrentBranch=refuse",
    "receive.autogc=false",
)
PORTS: Final = {"https": 443, "ssh": 22}
_PROXIES: Final = ("https_proxy", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True, slots=True)
class Route:
    """What a git that fetches or pushes is started with."""

    url: str
    shown: str
    settings: tuple[str, ...]
    environment: Mapping[str, str]
    program: tuple[str, str]
    """Options that name the serving program, for fetch (and ls-remote) and for push; empty for a host."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The policy, and what may be inherited from the process."""

    allow_local: bool
    allow_private: bool
    environment: Mapping[str, str] = field(repr=False)

    def checked(self, repository: str) -> RepositoryUrl:
        """Raises `RepositoryForbidden`."""
        try:
            return check(repository, allow_local=self.allow_local, allow_private=self.allow_private)
        except Refused as error:
            raise RepositoryForbidden(error.message) from error

    def route(self, url: RepositoryUrl, credentials: Mapping[str, str] | None = None) -> Route:
        """`credentials` are variables such as GIT_ASKPASS, for the one process that needs them."""
        given = {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "60", **(credentials or {})}
        given["GIT_ALLOW_PROTOCOL"] = {"local": "file", "https": "https", "ssh": "ssh"}[url.kind]
        if url.kind == "local":
            served = " ".join(f"-c {shlex.quote(setting)}" for setting in _SERVED)
            programs = (
                f"--upload-pack=git {served} upload-pack",
                f"--receive-pack=git {served} receive-pack",
            )
            return Route(url.canonical, url.redacted, (), given, programs)
        addresses = [] if self.allow_private else self._resolved(url)
        port = url.port or PORTS[url.kind]
        settings: tuple[str, ...] = ()
        if url.kind == "ssh":
            given["GIT_SSH_VARIANT"] = "ssh"
            given["GIT_SSH_COMMAND"] = " ".join(_ssh(url.host, port, addresses))
        elif addresses:
            settings = (f"http.curloptResolve={url.host}:{port}:{','.join(addresses)}",)
        return Route(url.canonical, url.redacted, settings, given, ("", ""))

    def _resolved(self, url: RepositoryUrl) -> list[str]:
        try:
            found = socket.getaddrinfo(url.host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            if any(name in self.environment for name in _PROXIES):
                return []  # names are the proxy's business then, and so is where it connects to
            raise RepositoryUnreachable(f"{url.redacted}: the host's name can't be resolved") from error
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not all(is_public(address) for address in addresses):
            raise RepositoryForbidden(f"{url.redacted}: the host's name leads to a private address")
        return [
            f"[{at}]" if isinstance(at, ipaddress.IPv6Address) else str(at) for at in dict.fromkeys(addresses)
        ]


def _ssh(host: str, port: int, addresses: list[str]) -> list[str]:
    options = ["BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ForwardAgent=no"]
    if addresses:
        alias = host if port == PORTS["ssh"] else f"[{host}]:{port}"
        options += [f"HostName={addresses[0].strip('[]')}", f"HostKeyAlias={alias}"]
    return ["ssh", *(shlex.quote(f"-o{option}") for option in options)]
