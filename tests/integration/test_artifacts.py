from __future__ import annotations

import hashlib
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from orchestrator.core.errors import Refused, Unknown
from orchestrator.workspaces.artifacts import Artifacts
from orchestrator.workspaces.errors import ArtifactStoreUnavailable, CommitMissing
from tests.integration.repositories import installation, owner, repository


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "file url", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "s3":
        return f"{'file://' if request.param == 'file url' else ''}{tmp_path}/artifacts"
    endpoint = request.getfixturevalue("s3")
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


def test_what_is_put_comes_back_whole_and_in_parts(url: str) -> None:
    store = Artifacts(url)
    stored = store.put(b"0123456789")
    assert stored.sha256 == hashlib.sha256(b"0123456789").hexdigest()
    assert (stored.size, store.get(stored.key)) == (10, b"0123456789")
    assert store.put(io.BytesIO(b"0123456789")) == stored
    assert store.read(stored.key, 3, 4) == b"3456"
    assert store.read(stored.key, 8, 100) == b"89"
    assert store.read(stored.key, 10, 1) == b""
    assert store.has(stored.key)
    store.delete(stored.key)
    store.delete(stored.key)
    assert not store.has(stored.key)
    for wanted in (store.get, lambda key: store.read(key, 0, 1)):
        with pytest.raises(Unknown):
            wanted(stored.key)


def test_a_long_one_goes_through_without_being_held_in_memory(url: str, tmp_path: Path) -> None:
    data = os.urandom(1024**2) * 20
    (tmp_path / "long").write_bytes(data)
    store = Artifacts(url)
    with (tmp_path / "long").open("rb") as file:
        stored = store.put(file, "logs/long")
    assert stored.key == "logs/long"
    target = io.BytesIO()
    assert store.copy("logs/long", target) == len(data)
    assert target.getvalue() == data


def test_too_much_is_refused_and_leaves_nothing(url: str) -> None:
    store = Artifacts(url, max_bytes=100)
    with pytest.raises(Refused):
        store.put(b"x" * 101, "big")
    assert not store.has("big")


def test_a_store_that_is_not_the_shared_one_is_noticed(url: str, tmp_path: Path) -> None:
    store = Artifacts(url)
    with pytest.raises(ArtifactStoreUnavailable, match="isn't the store of this installation"):
        store.check_marker("one")
    store.ensure_marker("one")
    store.ensure_marker("one")
    Artifacts(url).check_marker("one")
    with pytest.raises(ArtifactStoreUnavailable, match="another installation"):
        Artifacts(url).ensure_marker("two")
    with pytest.raises(ArtifactStoreUnavailable):
        Artifacts(str(tmp_path / "elsewhere")).check_marker("one")


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("NOT TESTED HERE: only root can make a small disk")
    try:
        store = Artifacts(str(small / "artifacts"))
        with pytest.raises(ArtifactStoreUnavailable, match="No space left"):
            store.put(b"x" * 3 * 1024**2, "big")
        assert not store.has("big")
        assert [at for at in small.rglob("*") if at.is_file()] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_store_that_cannot_be_reached_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactStoreUnavailable, match="file/below"):
        Artifacts(str(tmp_path / "file" / "below")).put(b"x")
    with pytest.raises(ArtifactStoreUnavailable, match="ftp"):
        Artifacts("ftp://example.org/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(ArtifactStoreUnavailable, match="s3://nowhere"):
        Artifacts("s3://nowhere/x").put(b"x")


def test_a_commit_travels_by_any_store(url: str, tmp_path: Path) -> None:
    source = repository(tmp_path / "s", {"a": "a\n"})
    here = installation(tmp_path / "here", artifacts=url)
    there = installation(tmp_path / "there", artifacts=url)
    base = here.fetch(str(source), None)
    workspace = here.open(owner(), base.mirror, base.commit)
    workspace.write("b", "b\n")
    sha = workspace.checkpoint("one")
    assert sha is not None
    here.bundles.store(base.mirror, sha, base.commit)
    there.fetch(str(source), None)
    there.bundles.ensure(base.mirror, sha)
    with pytest.raises(CommitMissing):
        there.bundles.ensure(base.mirror, "1" * 40)
