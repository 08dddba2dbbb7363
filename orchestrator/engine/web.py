"""Reaching hosts outside, held to a list: each request, redirects included, goes to a host that policy names,
at an address that was checked.

A name is resolved once and the connection is made to that very address, so a name that changes its address in
between gains nothing. Proxies of the environment are not used: they would resolve names by themselves.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from orchestrator.core.repository_url import is_public

PORTS: Final = {"http": 80, "https": 443}
REDIRECTS: Final = (301, 302, 303, 307, 308)
MOST_REDIRECTS: Final = 5
_TRIED: Final = 3


class HostRefused(Exception):
    """Policy forbids it; the text is for the model."""


class TooMuch(Exception):
    """The answer is longer than allowed."""


async def resolved(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, as the system says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """`hosts`: names (`docs.example.org`), names below one (`*.example.org`, not itself), `*` for any; each
    may name a port (`example.org:8443`), else the scheme's own is meant. Empty: nothing is reachable."""

    hosts: tuple[str, ...] = ()
    allow_private: bool = False
    """Whether a name may lead to loopback, private and link-local addresses."""
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolved

    def checked(self, url: str) -> httpx2.URL:
        """Raises `HostRefused`."""
        try:
            found = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError, UnicodeError) as error:
            raise HostRefused(f"this is no address: {error}") from error
        if found.scheme not in PORTS or not found.host:
            raise HostRefused("only http:// and https:// addresses can be fetched")
        if found.userinfo:
            raise HostRefused("the address contains a user name or a password")
        host, port = found.host.rstrip(".").lower(), found.port or PORTS[found.scheme]
        if not any(_matches(entry, host, port, PORTS[found.scheme]) for entry in self.hosts):
            shown = host if found.port is None else f"{host}:{port}"
            allowed = ", ".join(self.hosts) or "none may"
            raise HostRefused(f"{shown} is not among the hosts that may be reached ({allowed})")
        return found

    def covers(self, entry: str) -> bool:
        """Whether a list that holds `entry` reaches nothing that this one doesn't."""
        mine = {known.lower() for known in self.hosts}
        name, colon, number = entry.lower().rpartition(":")
        if not colon or not number.isdigit():
            name, port = entry.lower(), ""
        else:
            port = f":{number}"
        above = name.removeprefix("*.").split(".")
        wider = {"*." + ".".join(above[level:]) for level in range(0 if name[:2] == "*." else 1, len(above))}
        return bool({f"{known}{port}" for known in {name, "*", *wider}} & mine)

    async def addresses(self, url: httpx2.URL) -> list[str]:
        """Where its host is, each checked. Raises `HostRefused`."""
        port = url.port or PORTS[url.scheme]
        try:
            found = list(dict.fromkeys(await self.resolve(url.host, port)))
        except (OSError, UnicodeError) as error:
            raise HostRefused(f"the name {url.host} can't be resolved") from error
        if not self.allow_private and not all(is_public(ipaddress.ip_address(at)) for at in found):
            raise HostRefused(f"{url.host} leads to a loopback, private or link-local address")
        return found


def _matches(entry: str, host: str, port: int, usual: int) -> bool:
    name, colon, number = entry.lower().rpartition(":")
    if not colon or not number.isdigit():
        name, number = entry.lower(), str(usual)
    if str(port) != number:
        return False
    name = name.strip("[]").rstrip(".")
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, most: int) -> None:
        self._inner = inner
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooMuch
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Checks and pins every request; an answer of more than `most_bytes` raises `TooMuch` as it is read.

    Requests must say `accept-encoding: identity`: what unpacks to any length is refused.
    """

    def __init__(self, policy: HostPolicy, most_bytes: int) -> None:
        self._policy = policy
        self._most = most_bytes
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = self._policy.checked(str(request.url))
        addresses = await self._policy.addresses(url)
        for number, address in enumerate(addresses[:_TRIED], 1):
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            try:
                response = await self._inner.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if number == min(len(addresses), _TRIED):
                    raise
                continue
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise HostRefused("the answer is compressed although that was not asked for")
            response.stream = _Bounded(response.stream, self._most)
            return response
        raise httpx2.ConnectError(f"{url.host} has no address", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(frozen=True, slots=True)
class Page:
    """What was fetched; `data` is cut at the limit, and `cut` says whether it was."""

    url: str
    status: int
    content_type: str
    data: bytes
    cut: bool


async def fetch(policy: HostPolicy, url: str, most_bytes: int) -> Page:
    """GET, with at most five redirects, each of which must lead to an allowed host.

    Raises `HostRefused` and `httpx2.HTTPError`. How long it may take is the caller's to say.
    """
    transport = PinnedTransport(policy, most_bytes * 4)
    headers = {"accept": "text/*, application/json;q=0.9, */*;q=0.1", "accept-encoding": "identity"}
    async with httpx2.AsyncClient(
        transport=transport, headers=headers, timeout=15, trust_env=False
    ) as client:
        for _ in range(MOST_REDIRECTS + 1):
            at = policy.checked(url)
            async with client.stream("GET", at) as response:
                location = response.headers.get("location")
                if response.status_code not in REDIRECTS or location is None:
                    return await _page(str(at), response, most_bytes)
                url = str(at.join(location))
    raise HostRefused(f"it redirects more than {MOST_REDIRECTS} times")


async def _page(url: str, response: httpx2.Response, most_bytes: int) -> Page:
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > most_bytes:
            break
    content_type = response.headers.get("content-type", "")
    return Page(url, response.status_code, content_type, bytes(data[:most_bytes]), len(data) > most_bytes)
