"""Git over the bare repositories that are ours, in an environment that nobody else has a say in.

GitPython reads objects (`Repository`). What writes, merges or talks to a remote is started here: GitPython's
runner knows neither a stop nor limits, and copies the whole process environment into every git.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final

from git import Repo
from git.cmd import Git as Command
from git.exc import BadName, BadObject

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.repository_url import redact
from orchestrator.workspaces.errors import GitError

LOCAL: Final = timedelta(minutes=2)
"""How long a git that talks to nobody may take."""
LOOSE_BELOW: Final = 200
PACK_HEADER: Final = 12
SHA: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")

INHERITED: Final = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
INHERITED_BY_NETWORK: Final = (
    "HOME", "SSH_AUTH_SOCK", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH",
    "http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
)  # fmt: skip
ISOLATION: Final[Mapping[str, str]] = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "LC_ALL": "C",
}
# Old histories hold these three harmless faults; a fetch that refused them would refuse well-known projects.
_TOLERATED: Final = ("zeroPaddedFilemode", "missingSpaceBeforeDate", "badTimezone")
SETTINGS: Final[tuple[str, ...]] = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "http.followRedirects=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "transfer.fsckObjects=true",
    *(f"{where}.fsck.{fault}=ignore" for where in ("fetch", "receive") for fault in _TOLERATED),
    "gc.auto=0",
    "maintenance.auto=false",
    "core.logAllRefUpdates=false",
    "protocol.version=2",
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a git printed. `errors` is redacted and decoded."""

    code: int
    data: bytes
    errors: str

    @property
    def text(self) -> str:
        """Standard output without the last newline; names that aren't UTF-8 survive as surrogates."""
        return self.data.decode("utf-8", "surrogateescape").rstrip("\n")


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """What a commit object says about itself; `message` is the whole of it."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    committed_at: int
    """Seconds since 1970."""
    message: str


class IsolatedCommand(Command):
    """GitPython's runner, behind `env -i`."""

    def execute(self, command: Any, *arguments: Any, **options: Any) -> Any:
        kept = [f"{name}={os.environ[name]}" for name in INHERITED if name in os.environ]
        alone = ["env", "-i", *kept, *(f"{name}={value}" for name, value in ISOLATION.items())]
        return super().execute([*alone, *command], *arguments, **options)


class Repository(Repo):
    """One of our bare repositories as GitPython's objects: commits, trees, diffs."""

    GitCommandWrapperType = IsolatedCommand


class Git:
    """One bare repository of ours. `environment` is the process's; only names listed above are passed on."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self._environment = environment

    def run(
        self,
        *words: str,
        stdin: bytes | IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        settings: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        network: bool = False,
        accept: tuple[int, ...] = (0,),
        timeout: timedelta = LOCAL,
        stop: Stop | None = None,
    ) -> Output:
        """Raises `GitError` when its code isn't in `accept`, it takes too long, or `stop` is set hard.

        With a file as `stdout` what it prints goes there, and the output has no data.
        """
        options = [option for setting in (*SETTINGS, *settings) for option in ("-c", setting)]
        inherited = INHERITED + (INHERITED_BY_NETWORK if network else ())
        return run(
            ["git", f"--git-dir={self.directory}", *options, *words],
            environment={
                **{name: self._environment[name] for name in inherited if name in self._environment},
                **ISOLATION,
                **(environment or {}),
            },
            stdin=stdin,
            stdout=stdout,
            accept=accept,
            timeout=timeout,
            stop=stop,
        )

    def first(
        self, *words: str, most: int, environment: Mapping[str, str] | None = None
    ) -> tuple[bytes, int]:
        """At most so many bytes of what it prints, and how many that were: never all of it in memory."""
        with tempfile.TemporaryFile() as file:
            self.run(*words, stdout=file, environment=environment)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return file.read(most), size

    def text(self, *words: str, stdin: bytes | None = None) -> str:
        return self.run(*words, stdin=stdin).text

    def has(self, commit: str) -> bool:
        """Whether this repository holds that commit (not: all that it reaches)."""
        return self.run("cat-file", "-e", f"{commit}^{{commit}}", accept=(0, 1, 128)).code == 0

    def ref(self, name: str) -> str | None:
        found = self.run("rev-parse", "--verify", "--quiet", "--end-of-options", name, accept=(0, 1, 128))
        return found.text if found.code == 0 and SHA.fullmatch(found.text) else None

    def commit(self, sha: str) -> CommitInfo:
        """Raises `GitError` when there is no such commit."""
        try:
            with Repository(self.directory) as repository:
                found = repository.commit(sha)
                return CommitInfo(
                    sha=found.hexsha,
                    tree=found.tree.hexsha,
                    parents=tuple(parent.hexsha for parent in found.parents),
                    committed_at=found.committed_date,
                    message=_text(found.message),
                )
        except (BadName, BadObject, ValueError, IndexError) as error:
            raise GitError(f"no such commit: {sha}", ErrorClass.REPOSITORY) from error

    def write_commit(
        self, tree: str, parents: tuple[str, ...], message: str, at: int, *, author: str = "orchestrator"
    ) -> str:
        """The same arguments give the same sha, anywhere and any time."""
        date = f"{at} +0000"
        identity = {
            "GIT_AUTHOR_NAME": author,
            "GIT_AUTHOR_EMAIL": f"{author}@orchestrator.invalid",
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_NAME": author,
            "GIT_COMMITTER_EMAIL": f"{author}@orchestrator.invalid",
            "GIT_COMMITTER_DATE": date,
        }
        ancestry = [word for parent in parents for word in ("-p", parent)]
        text = message.replace("\0", "").encode("utf-8", "replace")
        return self.run(
            "commit-tree", *ancestry, "-F", "-", tree,
            stdin=text, environment=identity, settings=("commit.gpgSign=false", "i18n.commitEncoding=UTF-8"),
        ).text  # fmt: skip

    def take_pack(self, pack: IO[bytes], most_bytes: int) -> None:
        """Adds a (thin) pack's objects; damaged, dangerous and dangling ones are refused with `GitError`."""
        start = pack.tell()
        header = pack.read(PACK_HEADER)
        os.lseek(pack.fileno(), start, os.SEEK_SET)  # git reads the descriptor, not Python's buffer
        if len(header) < PACK_HEADER or header[:4] != b"PACK":
            raise GitError("not a pack", ErrorClass.INTERNAL)
        count = int.from_bytes(header[8:], "big")
        limit = f"--max-input-size={most_bytes}"
        if count == 0:
            return
        # A pack for each small checkpoint would make every later look-up slower.
        words = ["unpack-objects", "-q"] if count < LOOSE_BELOW else ["index-pack", "--stdin", "--fix-thin"]
        self.run(*words, "--strict", limit, stdin=pack)


def run(
    words: list[str],
    *,
    environment: Mapping[str, str],
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    accept: tuple[int, ...] = (0,),
    timeout: timedelta = LOCAL,
    stop: Stop | None = None,
) -> Output:
    """One process, its own group, killed whole at the timeout."""
    try:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE if isinstance(stdin, bytes) else (stdin or subprocess.DEVNULL),
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise GitError(f"git could not be started: {error.strerror or error}") from error
    with process:
        try:
            given = stdin if isinstance(stdin, bytes) else None
            data, errors = _wait(process, given, monotonic() + timeout.total_seconds(), stop)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    complaint = redact(errors.decode("utf-8", "replace").strip())[-2000:]
    if process.returncode not in accept:
        full = "No space left on device" in complaint or "Disk quota exceeded" in complaint
        kind = ErrorClass.STORAGE if full else ErrorClass.RESOURCE
        raise GitError(complaint or f"git ended with code {process.returncode}", kind)
    return Output(process.returncode, data or b"", complaint)


def _wait(
    process: subprocess.Popen[bytes], given: bytes | None, until: float, stop: Stop | None
) -> tuple[bytes | None, bytes]:
    while True:
        try:
            return process.communicate(given, timeout=max(0.0, min(0.25, until - monotonic())))
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_hard():
                raise GitError("git was stopped", ErrorClass.TIMEOUT) from None
            if monotonic() >= until:
                raise GitError("git took too long", ErrorClass.TIMEOUT) from None
            given = None


def _text(message: str | bytes) -> str:
    return message if isinstance(message, str) else message.decode("utf-8", "replace")
