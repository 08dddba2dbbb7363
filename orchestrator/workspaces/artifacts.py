"""The artifact store: what must outlive a machine, in a folder that all workers share or in S3."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from orchestrator.core.errors import Refused, Unknown
from orchestrator.workspaces.errors import ArtifactStoreUnavailable

MARKER: Final = "installation"
CHUNK: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: where it is, how long it is, and what it is."""

    key: str
    size: int
    sha256: str


class Artifacts:
    """Objects by key. Raises `ArtifactStoreUnavailable`; nothing is ever there in part."""

    def __init__(self, url: str, *, max_bytes: int = 2 * 1024**3) -> None:
        """`url`: an absolute path, `file:///…` or `s3://bucket/prefix` (settings by the AWS_… names)."""
        self.url = url
        self._max_bytes = max_bytes
        with self._saying("can't be opened"):
            path = url.removeprefix("file://")
            if path.startswith("/"):
                self._store: ObjectStore = LocalStore(Path(path), automatic_cleanup=True, mkdir=True)
            elif url.startswith("s3://"):
                self._store = from_url(url, retry_config={"max_retries": 3})
            else:
                raise ArtifactStoreUnavailable(
                    f"{url.partition('://')[0]!r} is no kind of artifact store", "Use file:///… or s3://…"
                )

    def put(self, data: bytes | IO[bytes], key: str | None = None) -> Stored:
        """Without a `key` it is named after its content. Raises `Refused` when it is longer than allowed."""
        with tempfile.SpooledTemporaryFile(max_size=8 * CHUNK) as spool:
            digest, size = hashlib.sha256(), 0
            for chunk in _chunks(data):
                size += len(chunk)
                if size > self._max_bytes:
                    raise Refused(
                        "artifact-too-large", f"An artifact may have {self._max_bytes} bytes at most."
                    )
                digest.update(chunk)
                spool.write(chunk)
            spool.seek(0)
            name = digest.hexdigest()
            at = key or f"content/{name[:2]}/{name}"
            with self._saying("can't be written"):
                obstore.put(self._store, at, spool)
        return Stored(at, size, name)

    def get(self, key: str) -> bytes:
        """Raises `Unknown`."""
        with self._saying("can't be read", key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def copy(self, key: str, target: IO[bytes]) -> int:
        """Writes an object of any length to a file; its length. Raises `Unknown`."""
        with self._saying("can't be read", key):
            return sum(target.write(chunk) for chunk in obstore.get(self._store, key).stream())

    def read(self, key: str, start: int, length: int) -> bytes:
        """A part of an object, cut at its end. Raises `Unknown`."""
        with self._saying("can't be read", key):
            size = int(obstore.head(self._store, key)["size"])
            end = min(size, start + length)
            if start >= end:
                return b""
            return obstore.get_range(self._store, key, start=start, end=end).to_bytes()

    def has(self, key: str) -> bool:
        try:
            with self._saying("can't be read", key):
                obstore.head(self._store, key)
        except Unknown:
            return False
        return True

    def delete(self, key: str) -> None:
        """Once or twice."""
        try:
            with self._saying("can't be written", key):
                obstore.delete(self._store, key)
        except Unknown:
            return

    def ensure_marker(self, installation_id: str) -> None:
        """Says whose store it is, if nobody has yet; then checks it."""
        try:
            with self._saying("can't be written"):
                obstore.put(self._store, MARKER, installation_id.encode(), mode="create")
        except _There:
            pass
        self.check_marker(installation_id)

    def check_marker(self, installation_id: str) -> None:
        """Raises `ArtifactStoreUnavailable` when this isn't the store that the other workers use."""
        hint = "Give every worker the same artifact URL: a folder on a shared disk, or s3://bucket/prefix."
        try:
            there = self.get(MARKER).decode("utf-8", "replace")
        except Unknown as error:
            raise ArtifactStoreUnavailable(
                f"{self.url} isn't the store of this installation", hint
            ) from error
        if there != installation_id:
            raise ArtifactStoreUnavailable(f"{self.url} belongs to another installation", hint)

    @contextmanager
    def _saying(self, what: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except AlreadyExistsError as error:
            raise _There from error
        except (NotFoundError, FileNotFoundError) as error:
            raise Unknown("artifact-unknown", f"There is no artifact {key}.") from error
        except (BaseError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            full = "No space left" in str(error)
            hint = "Free some space there." if full else "Check that it exists and may be written to."
            raise ArtifactStoreUnavailable(f"The artifact store {self.url} {what}: {reason}", hint) from error


class _There(Exception):
    """Somebody wrote it first."""


def _chunks(data: bytes | IO[bytes]) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    while chunk := data.read(CHUNK):
        yield chunk
