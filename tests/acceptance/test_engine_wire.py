"""The engine on the real wire: a stack, its gateway, and a model server that speaks the Messages API."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local import ports, processes
from tests.acceptance.running import Doors, until, up
from tests.integration.repositories import git, repository
from tests.model_server import RunningModel, model_server

pytestmark = pytest.mark.timeout(240)

_TEST = """
import sys
from shop.price import net
from shop.tax import tax
from shop.total import total
ok = net(10) == 10 and tax(10) == 2 and total(10) == 12
print("ok" if ok else "FAILED")
sys.exit(not ok)
"""
_FILES = {
    "shop/__init__.py": "",
    "shop/price.py": "def net(amount):\n    return amount + 1\n",
    "shop/tax.py": "def tax(amount):\n    return amount * 2 // 100\n",
    "shop/total.py": "from shop.price import net\nfrom shop.tax import tax\n\n\ndef total(amount):\n"
    "    return net(amount) - tax(amount)\n",
    "check.py": _TEST,
}
_PARENT = "Make the shop's sums right"
_KEY = "sk-ant-api03-this-key-is-the-gateway-s-alone-0123456789"


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def _edit(path: str, old: str, new: str) -> dict[str, Any]:
    return _call("edit_file", path=path, old=old, new=new)


def _child(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "when": {"contains": f"Write {name}.md", "lacks": _PARENT},
        "turns": [
            {"calls": [_call("write_file", path=f"{name}.md", content=f"{name}\n")]},
            {"calls": [_call("attempt_completion", summary=f"Wrote {name}.md.")]},
        ],
    }


_SCRIPT: Mapping[str, Any] = {
    "conversations": [
        {
            "name": "parent",
            "when": {"contains": _PARENT},
            "turns": [
                {"text": "I look first.", "calls": [_call("run_command", command="python check.py")]},
                {
                    "calls": [
                        _edit("shop/price.py", "amount + 1", "amount"),
                        _edit("shop/tax.py", "* 2 // 100", "* 20 // 100"),
                        _edit("shop/total.py", "net(amount) -", "net(amount) +"),
                    ]
                },
                {"calls": [_call("run_command", command="python check.py")]},
                {
                    "calls": [
                        _call("ask_followup_question", question="Which notes?", options=["both", "none"])
                    ]
                },
                {
                    "calls": [
                        _call("start_subtask", objective="Write usage.md"),
                        _call("start_subtask", objective="Write changes.md"),
                    ]
                },
                {"text": "Both are there. " * 40, "calls": [_call("list_files")]},
                {"calls": [_call("attempt_completion", summary="The sums are right, the notes written.")]},
            ],
        },
        _child("usage"),
        _child("changes"),
    ]
}


def test_a_task_asks_starts_subtasks_survives_a_kill_and_commits_with_no_turn_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = repository(tmp_path / "shop", _FILES)
    with model_server(_SCRIPT) as model:
        model.fault("stall", when={"contains": _PARENT}, turn=5)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", model.url)
        settings = {
            "anthropic_api_key": _KEY,
            "anthropic_base_url": model.url,
            "model": "claude-sonnet-4-6",
            "lease": "PT4S",
            "sweep_every": "PT1S",
        }
        port = str(ports.choose(0))
        with up(tmp_path / "up", "--ephemeral", "--no-flower", "--port", port, **settings) as (_, doors):
            task = doors.create(
                description=_PARENT, repository={"path": str(shop)}, agent={"type": "engine"}
            )["id"]
            waiting = doors.until_status(task, "pending_input")
            [question] = waiting["questions"]
            assert question["text"] == "Which notes?"
            answered = doors.post(f"/questions/{question['id']}/answer", answer={"text": "both"})
            assert answered.status_code == 200, answered.text
            _kill_whoever_waits_for(model, doors, task)
            done = doors.until_status(task, "completed")
            _committed_what_all_three_did(doors, done)
            _asked_each_turn_once(model)
            tests = [
                event["data"]
                for event in doors.events(task)
                if event["name"] == "tool" and event["data"].get("name") == "run_command"
            ]
            assert [each["is_error"] for each in tests if each["state"] == "finished"] == [True, False]


def _kill_whoever_waits_for(model: RunningModel, doors: Doors, task: str) -> None:
    """In the middle of the reply that stalls: the sixth of the parent's, after its subtasks ended."""

    def stalled() -> bool:
        return any(
            (send.conversation, send.turn, send.outcome) == ("parent", 5, "open") for send in model.sends()
        )

    until(stalled, "the reply that stalls", model.sends)
    [pid] = [agent["pid"] for agent in doors.get("/agents")["data"] if agent["task_id"] == task]
    child = processes.identify(pid)
    assert child is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes.alive(child), "the end of the killed process")


def _committed_what_all_three_did(doors: Doors, done: Mapping[str, Any]) -> None:
    [mirror] = (doors.data / "mirrors").glob("*.git")
    changed = git(mirror, "diff", "--name-only", done["base_commit"], done["branch"]).split()
    assert changed == ["changes.md", "shop/price.py", "shop/tax.py", "shop/total.py", "usage.md"]


def _asked_each_turn_once(model: RunningModel) -> None:
    sends = model.await_end()
    assert model.finished_twice() == []
    asked = Counter((send.conversation, send.turn) for send in sends)
    assert asked.pop(("parent", 5)) == 2, "the interrupted turn is asked for once more"
    assert set(asked.values()) == {1}
    assert sum(asked.values()) == 6 + 2 + 2
