"""The providers that this gateway has a way to, and what is said to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlencode

import httpx2
from pydantic import SecretStr

from orchestrator.config import Settings
from orchestrator.core.redaction import REDACTED, SHORTEST, Redactor
from orchestrator.gateway.dialects import Dialect, Family
from orchestrator.gateway.keys import CommandKey, FixedKey, Key

_PUBLIC: Final = {
    Family.ANTHROPIC: "https://api.anthropic.com",
    Family.OPENAI: "https://api.openai.com",
}
_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"proxy-connection", b"expect"),
    }
)
_PASSED: Final = frozenset(
    {
        *(b"accept", b"user-agent", b"x-client-request-id"),
        *(b"anthropic-version", b"anthropic-beta", b"anthropic-dangerous-direct-browser-access"),
        *(b"openai-beta", b"originator", b"session-id", b"session_id", b"thread-id", b"agent-session-id"),
        *(b"x-app", b"x-claude-code-session-id"),
    }
)
_PASSED_PREFIXES: Final = (b"x-stainless-", b"x-codex-")
"""What real agents and SDKs tell providers. Nothing else goes out: neither what ties calls to runs here, nor
what chooses an account, a project, or another reading of the body."""
_IDEMPOTENCY: Final = b"idempotency-key"
_PASSED_QUERY: Final = frozenset({"beta", "api-version"})
_KEPT_BACK: Final = frozenset({b"set-cookie", b"content-length", b"server", b"date", b"alt-svc"})


@dataclass(frozen=True, slots=True)
class Provider:
    """`base_url` has no path that the dialect's own begins with. Without a key it is a server of the user's
    own."""

    name: Family
    base_url: str
    key: Key | None = field(repr=False)
    ours: frozenset[bytes] = frozenset()
    """Further headers that are for us, by their lower-case names."""

    def url(self, dialect: Dialect, query: bytes) -> str:
        given = parse_qsl(query.decode("ascii", "replace"))
        asked = urlencode([(name, value) for name, value in given if name in _PASSED_QUERY])
        return f"{self.base_url}{dialect.path}{asked and '?'}{asked}"

    def headers(
        self,
        given: Iterable[tuple[bytes, bytes]],
        added: Mapping[str, str],
        secret: str | None,
        run: str = "",
    ) -> list[tuple[bytes, bytes]]:
        """Those of the caller's that are for providers, and the real key. `run`: what no other run has in
        common with the caller's. Encoded replies couldn't be observed."""
        kept = [
            (name, _of_run(run, value) if name == _IDEMPOTENCY else value)
            for name, value in given
            if name not in self.ours
            and (name in _PASSED or name == _IDEMPOTENCY or name.startswith(_PASSED_PREFIXES))
        ]
        kept.append((b"content-type", b"application/json"))
        kept.append((b"accept-encoding", b"identity"))
        kept += self.shown(secret)
        return [*kept, *((name.encode(), value.encode()) for name, value in added.items())]

    async def again(self, refused: httpx2.Request, secret: str | None) -> httpx2.Request | None:
        """The same request with another key than the one that was refused; None: there is no other."""
        renewed = None if self.key is None or secret is None else await self.key.renewed(secret)
        if renewed is None:
            return None
        again = httpx2.Request(
            refused.method,
            refused.url,
            headers=refused.headers,
            content=refused.content,
            extensions=refused.extensions,
        )
        for name, value in self.shown(renewed):
            again.headers[name.decode()] = value.decode()
        return again

    def shown(self, secret: str | None) -> list[tuple[bytes, bytes]]:
        if secret is None:
            return []
        if self.name is Family.ANTHROPIC:
            return [(b"x-api-key", secret.encode())]
        return [(b"authorization", b"Bearer " + secret.encode())]


def _of_run(run: str, key: bytes) -> bytes:
    """All runs share one account: with a key that others can guess, one could be answered what was said to
    another. The same for the same of one run, as its SDK tries again."""
    return sha256(b"%b:%b" % (run.encode(), key)).hexdigest().encode()


def providers_of(settings: Settings, redactor: Redactor) -> Mapping[Family, Provider]:
    """The redactor learns each key that a command prints."""
    found = {
        Family.ANTHROPIC: (
            _key(settings.anthropic_api_key, settings.anthropic_api_key_command, redactor),
            settings.anthropic_base_url,
        ),
        Family.OPENAI: (
            _key(settings.openai_api_key, settings.openai_api_key_command, redactor),
            settings.openai_base_url,
        ),
    }
    ours = frozenset(
        name.lower().encode() for name in (*settings.task_id_headers, *settings.timestamp_headers)
    )
    return {
        name: Provider(name, _root(url or _PUBLIC[name]), key, ours)
        for name, (key, url) in found.items()
        if key or url
    }


def _key(secret: SecretStr | None, command: str | None, redactor: Redactor) -> Key | None:
    """A command comes before a key that is set as well."""
    if command:
        return CommandKey(command, redactor)
    return FixedKey(secret.get_secret_value()) if secret and secret.get_secret_value() else None


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def without(key: bytes, said: bytes) -> bytes:
    """What a provider said, without the key that it was shown; the caller must never see that."""
    return said.replace(key, REDACTED.encode()) if len(key) >= SHORTEST else said


def passed_back(headers: Iterable[tuple[bytes, bytes]], key: bytes = b"") -> list[tuple[bytes, bytes]]:
    """Of the provider's headers those that the caller gets: none that only we may say."""
    return [
        (name.lower(), without(key, value))
        for name, value in headers
        if name.lower() not in _HOP_BY_HOP | _KEPT_BACK and not name.lower().startswith(b"x-orchestrator-")
    ]
