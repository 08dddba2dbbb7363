from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from orchestrator.config import Settings
from orchestrator.local.doctor import Finding, Level, examine


def _about(findings: tuple[Finding, ...], words: str) -> list[Finding]:
    return [finding for finding in findings if words in finding.what]


def test_whatever_is_wrong_says_why_and_what_to_do(tmp_path: Path) -> None:
    findings = examine(Settings(data_dir=tmp_path, database_url=SecretStr("postgresql://127.0.0.1:1/x")), {})
    wrong = [finding for finding in findings if finding.level is not Level.OK]
    assert all(finding.why and finding.fix for finding in wrong)
    [database] = _about(findings, "postgres-unreachable")
    assert database.level is Level.ERROR


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    secret = "hunter2"
    settings = Settings(data_dir=tmp_path, broker_url=SecretStr(f"amqp://user:{secret}@127.0.0.1:1//"))
    assert secret not in repr(examine(settings, {}))


def test_rabbitmq_comes_with_a_word_about_its_timeout(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url=SecretStr("amqp://127.0.0.1:1//"))
    [finding] = _about(examine(settings, {}), "consumer_timeout")
    assert "86400000" in finding.fix


@pytest.mark.skipif(shutil.which("epmd") is None, reason="needs Erlang")
def test_asking_a_rabbitmq_that_is_not_there_starts_no_port_mapper(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        settings = Settings(data_dir=tmp_path, broker_url=SecretStr("amqp://127.0.0.1:1//"))
        unused.close()
        environment = {**os.environ, "ERL_EPMD_PORT": str(port), "HOME": str(tmp_path)}
        assert _about(examine(settings, environment), "consumer_timeout")
    assert not [at for at in Path("/proc").glob("[0-9]*") if f"ERL_EPMD_PORT={port}" in _environment(at)]


def _environment(process: Path) -> list[str]:
    try:
        return (process / "environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def test_a_command_of_another_product_that_shadows_ours_is_found(tmp_path: Path) -> None:
    ours = Path(sys.executable).parent / "orchestrator"
    if not ours.exists():
        ours = tmp_path / "none"
    other = tmp_path / "bin" / "orchestrator"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    found = _about(examine(Settings(data_dir=tmp_path), {"PATH": str(other.parent)}), "on PATH is")
    assert [finding.level for finding in found] == ([Level.WARNING] if ours.exists() else [])


def test_a_folder_that_does_not_exist_yet_is_measured_by_its_parent(tmp_path: Path) -> None:
    [disk] = _about(examine(Settings(data_dir=tmp_path / "a" / "b"), {}), "free for")
    assert str(tmp_path / "a" / "b") in disk.what
