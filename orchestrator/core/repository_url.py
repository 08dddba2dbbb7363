"""Which repository addresses may be fetched from: https, ssh and local paths, by policy.

Pure: a name is not resolved here. Whoever connects resolves it and asks `is_public` about each address.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from orchestrator.core.errors import Refused

CODE: Final = "repository-forbidden"
MAX_LENGTH: Final = 2048

_CONTROL: Final = re.compile(r"[\x00-\x20\x7f\u0080-\u009f\u2028\u2029]")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SCP: Final = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>\[[^\]]+\]|[^@/:]+):(?P<path>[^:].*)")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:/|:)")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_OF_THE_PLACE: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48")))
"""Where they lead at all, a translator of the local network decides it; Python takes them for global ones."""

Kind = Literal["https", "ssh", "local"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """An address that policy allows. `canonical` is what git is given and what a mirror is named after."""

    canonical: str
    kind: Kind
    host: str
    """Lower case, without brackets; empty for a local path."""
    port: int | None = None

    @property
    def redacted(self) -> str:
        """For logs and pages: where it is, without a user's name or a query."""
        if self.kind == "local":
            return self.canonical
        return redact(self.canonical)


def redact(text: str) -> str:
    """`text` with the user part and the query of every URL in it taken out."""
    text = re.sub(r"(?<=://)[^/\s@'\"]*@", "", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def is_public(address: Address) -> bool:
    """Whether an address is reachable from the whole Internet, the ones wrapped in it included."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is not None:
            return is_public(inner)
        if address.is_site_local or any(address in network for network in _OF_THE_PLACE):
            return False
    return address.is_global and not address.is_multicast and not address.is_unspecified


def check(url: str, *, allow_local: bool, allow_private: bool = False) -> RepositoryUrl:
    """Raises `Refused("repository-forbidden")` for all but https, ssh and (where allowed) absolute paths.

    The user part of an ssh address (`git@`) is the account's name and stays; any other is refused, since it
    is a credential. `allow_private` admits hosts spelled as loopback, private or link-local addresses.
    """
    if len(url) > MAX_LENGTH:
        raise _refused(f"the address is longer than {MAX_LENGTH} characters")
    if not url or url.startswith("-"):
        raise _refused("the address is empty or starts with a dash")
    if url.startswith("/"):
        return _local(url, allow_local)
    if _CONTROL.search(url):
        raise _refused("the address contains spaces or control characters")
    if "://" in url:
        return _remote(url, allow_private)
    if "::" not in url.partition("[")[0] and (match := _SCP.fullmatch(url)):
        host, port = _host(match["host"], allow_private), None
        path = match["path"]
        return _ssh(match["user"], host, port, path if path.startswith("/") else f"/~/{path}", url)
    if _SCHEME.match(url) or ":" in url:
        raise _refused("only https, ssh and absolute local paths are allowed")
    raise _refused("a local path must be absolute")


def _remote(url: str, allow_private: bool) -> RepositoryUrl:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused("the address is malformed") from error
    scheme = parts.scheme.lower()
    if scheme not in ("https", "ssh"):
        raise _refused(f"the scheme {scheme[:20]!r} is not allowed, only https and ssh are")
    if parts.query or parts.fragment or "\\" in url:
        raise _refused("the address has a query, a fragment or a backslash")
    user, at, location = parts.netloc.rpartition("@")
    name = location if location.startswith("[") else location.partition(":")[0]
    host = _host(name.partition("]")[0] + "]" if name.startswith("[") else name, allow_private)
    if len(unquote(parts.path).strip("/")) == 0:
        raise _refused("the address names a host but no repository")
    if _CONTROL.search(unquote(parts.path)):
        raise _refused("the address contains control characters")
    if scheme == "ssh":
        return _ssh(user if at else None, host, port, parts.path, url)
    if at:
        raise _refused("the address contains a user name or a password; name one in repository.credential")
    shown = f"[{host}]" if ":" in host else host
    canonical = f"https://{shown}{f':{port}' if port not in (None, 443) else ''}{parts.path.rstrip('/')}"
    return RepositoryUrl(canonical, "https", host, port)


def _ssh(user: str | None, host: str, port: int | None, path: str, url: str) -> RepositoryUrl:
    if user is not None and not _USER.fullmatch(user):
        raise _refused("the user part of an ssh address must be a plain name, without a password")
    if path.removeprefix("/~").lstrip("/").startswith("-") or "'" in url:
        raise _refused("the path of an ssh address starts with a dash or contains a quote")
    shown = f"[{host}]" if ":" in host else host
    where = f"{shown}:{port}" if port not in (None, 22) else shown
    canonical = f"ssh://{f'{user}@' if user else ''}{where}{path.rstrip('/')}"
    return RepositoryUrl(canonical, "ssh", host, port)


def _host(name: str, allow_private: bool) -> str:
    if name.startswith("[") and name.endswith("]"):
        try:
            address: Address | None = ipaddress.IPv6Address(name[1:-1])
        except ValueError as error:
            raise _refused("the host is not a valid IPv6 address") from error
        if "%" in name:
            raise _refused("the host has a zone")
        host = str(address)
    else:
        if not _HOST.fullmatch(name):
            raise _refused("the host is not a plain name (letters, digits, dots and dashes)")
        host = name.rstrip(".").lower()
        address = _spelled_oddly(host)
    local_name = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    if not allow_private and (local_name or (address is not None and not is_public(address))):
        raise _refused("the host is a loopback, private or link-local address")
    return host


def _spelled_oddly(host: str) -> Address | None:
    """The IPv4 address that C libraries read in `2130706433`, `0x7f.1`, `0177.0.0.1` …; None for a name."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _local(path: str, allow_local: bool) -> RepositoryUrl:
    if not allow_local:
        raise _refused("local repositories are not allowed here")
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise _refused("the path contains control characters")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused("the path contains '..'; give it resolved")
    return RepositoryUrl("/" + "/".join(parts), "local", "")


def _refused(why: str) -> Refused:
    return Refused(
        CODE,
        f"This repository address can't be used: {why}.",
        hint="Use https://host/path, ssh://git@host/path, git@host:path or an absolute local path.",
    )
