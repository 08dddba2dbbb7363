"""What `orchestrator up` prints: one line for each part, aligned."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.config import Settings
    from orchestrator.local.doctor import Finding

SHARED: Final = ("DATABASE_URL", "BROKER_URL", "RESULT_URL", "MESSAGE_SECRET")
"""The settings, without their prefix, that all machines of an installation have in common."""


@dataclass(frozen=True, slots=True)
class Report:
    """`say` prints a line."""

    say: Callable[[str], None]

    def greet(self, data_dir: Path, *, ephemeral: bool) -> None:
        version = importlib.metadata.version("orchestrator")
        kept = "removed at the end" if ephemeral else "kept between runs"
        python = platform.python_version()
        self.say(f"orchestrator {version} · Python {python} · data {short(data_dir)} ({kept})\n")

    def line(self, name: str, what: str, seconds: float | None = None) -> None:
        took = f" {seconds:4.1f}s" if seconds is not None else ""
        self.say(f" ✓ {name:<10} {what:<52}{took}".rstrip())

    def sandbox(self, found: Finding) -> None:
        """Nothing while it is as it should be."""
        if found.why:
            self.say(f" ! sandbox    {found.what}: {found.why}. {found.fix}")

    def model(self, settings: Settings) -> None:
        keys = [
            name
            for name, key, url in (
                (
                    "ANTHROPIC",
                    settings.anthropic_api_key or settings.anthropic_api_key_command,
                    settings.anthropic_base_url,
                ),
                (
                    "OPENAI",
                    settings.openai_api_key or settings.openai_api_key_command,
                    settings.openai_base_url,
                ),
            )
            if key or url
        ]
        if keys:
            self.line("model", f"{settings.model} ({' and '.join(keys)} by the gateway)")
        else:
            self.say(
                " ! model      no ANTHROPIC_API_KEY — only recorded demos will run."
                " Set it and `orchestrator restart gateway`."
            )

    def other_machines(self, address: str, environment: Mapping[str, str], artifact_url: str | None) -> None:
        """The settings as lines for a shell, secrets included: that is what they are asked for."""
        host = socket.gethostname() if address in {"0.0.0.0", "::"} else address  # noqa: S104 - compared only
        self.say(
            f"\n Postgres, Redis and the gateway also listen on {address}. Workers elsewhere need these"
            " settings:\n"
            " the passwords are in them and nothing is encrypted: only on a network that you trust.\n"
        )
        for name in (f"ORCHESTRATOR_{one}" for one in SHARED):
            self.say(f"   export {name}='{environment[name].replace('@127.0.0.1:', f'@{host}:')}'")
        port = environment["ORCHESTRATOR_GATEWAY_URL"].rpartition(":")[2]
        self.say(f"   export ORCHESTRATOR_GATEWAY_URL='http://{host}:{port}'")
        if artifact_url:
            self.say(f"   export ORCHESTRATOR_ARTIFACT_URL='{artifact_url}'")
        else:
            self.say(
                "   export ORCHESTRATOR_ARTIFACT_URL=…   # a store that both reach, set here too:\n"
                "                                        # file:///a/shared/folder or s3://bucket/prefix"
            )


def short(path: Path) -> str:
    """With ~ for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
