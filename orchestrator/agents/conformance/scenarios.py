"""The scenarios. Each says what it shows and what an agent must be able to for it, and raises `Failed` when
it is not so."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.agents.conformance.site import Ear, Site
from orchestrator.agents.types import Capability
from orchestrator.core.assignment import Limits
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, Done, NeedsInput, StopReason, Verdict, Yielded

PLANTED: Final = "sk-planted-0123456789-conformance"
"""Stands in our environment as a real key would."""
FIX: Final = "sed -i 's/a - b/a + b/' sums.py"
EDIT: Final = (
    "add() subtracts. This repairs it:\n\nsums.py\n```python\n<<<<<<< SEARCH\n    return a - b\n=======\n"
    "    return a + b\n>>>>>>> REPLACE\n```\n"
)
"""What models write for agents that give them no tools."""
SAID: Final = "Fixed add(): it subtracted."
SECONDS: Final = 90.0
_FEW: Final = 5
_FLOOD: Final = "python3 -c \"import sys; sys.stdout.write('\\x1b[2J\\x00' + 'x' * 5_000_000)\""


class Failed(Exception):
    """The agent didn't do what the scenario asks for."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`needs`: capabilities without which an agent is let off."""

    name: str
    needs: frozenset[Capability]
    play: Callable[[Site], None]


def fixing(*more: Mapping[str, Any]) -> dict[str, Any]:
    """With tools or without."""
    turns = [*more, {"calls": [{"run": FIX}]}, {"calls": [{"run": "python3 check.py"}]}, {"text": SAID}]
    return {
        "conversations": [
            {"when": {"tools": True}, "turns": turns},
            {"turns": [{"text": EDIT}], "loop": True},
        ]
    }


def _ended(verdict: Verdict) -> str:
    """In words."""
    match verdict:
        case Broke():
            return f"broke ({verdict.code}): {verdict.message}"
        case Done():
            return f"was done: {verdict.summary}"
        case NeedsInput():
            return f"asked for {verdict.ask.kind}: {verdict.ask.text}"
        case Yielded():
            return f"gave way ({verdict.reason})"
        case _:
            return f"ended as {verdict}"


def _need(condition: object, what: str, site: Site, verdict: Verdict | None = None) -> None:
    if not condition:
        raise Failed(f"{what}; it {_ended(verdict)}" if verdict else what)
    if site.left():
        raise Failed(f"processes of its run are left: {site.left()}")


def fixes_a_bug(site: Site) -> None:
    site.model.play(fixing())
    verdict = site.work()
    _need(isinstance(verdict, Done), "it says that it is done", site, verdict)
    _need("a + b" in site.read("sums.py"), "the file is repaired", site)
    _need(site.model.calls(), "its calls of the model are seen", site)


def is_not_believed(site: Site) -> None:
    said = {"text": "I have repaired everything."}
    site.model.play({"conversations": [{"turns": [said], "loop": True}]})
    verdict = site.work()
    found = isinstance(verdict, Broke) and verdict.code == "agent-changed-nothing"
    _need(found, "what is said and not done is no success", site, verdict)


def shows_its_tools(site: Site) -> None:
    site.model.play(fixing())
    site.work()
    _need(site.ear.tools, "its tool calls are seen as they happen", site)


def asks(site: Site) -> None:
    options = [{"label": "Plus", "description": "+"}, {"label": "Minus", "description": "-"}]
    question = {"question": "Which sign?", "header": "Sign", "multiSelect": False, "options": options}
    ask = {"name": "AskUserQuestion", "arguments": {"questions": [question]}}
    other = {"id": "sign", "header": "Sign", "question": "Which sign?", "options": options}
    codex = {"name": "request_user_input", "arguments": {"questions": [other]}}
    script = fixing({"calls": [{"any_of": [ask, codex]}]}, {"text": "I have no answer."})
    turns = script["conversations"][0]["turns"]
    turns[2] = {**turns[2], "latest": ["Plus"]}
    site.model.play(script)
    verdict = site.work()
    found = isinstance(verdict, NeedsInput) and "Which sign?" in verdict.ask.text
    _need(found, "its question reaches a person, and ends its program", site, verdict)
    site.files.answer("Plus")
    verdict = site.work()
    _need(isinstance(verdict, Done), "the answer lets it go on to its end", site, verdict)
    _need("a + b" in site.read("sums.py"), "the model reads the answer", site)


def waits_for_leave(site: Site) -> None:
    # A program with a sandbox of its own runs all in there, unless the model asks for leave to go outside.
    outside = {"cmd": FIX, "sandbox_permissions": "require_escalated", "justification": "May I?"}
    asking = {"calls": [{"any_of": [{"name": "exec_command", "arguments": outside}, {"run": FIX}]}]}
    ending = {"text": "NO CHANGE NEEDED: I was not allowed to make it."}
    site.model.play({"conversations": [{"turns": [asking, asking, ending, ending, ending]}]})
    verdict = site.work(approvals=("execute", "write"))
    found = isinstance(verdict, NeedsInput) and verdict.ask.kind is WaitingOn.TOOL_APPROVAL
    _need(found, "a risky call waits for leave", site, verdict)
    _need("a - b" in site.read("sums.py"), "nothing is run before the answer", site)
    site.files.answer("Deny")
    verdict = site.work(approvals=("execute", "write"))
    _need("a - b" in site.read("sums.py"), "what was denied is not run", site, verdict)


def is_cancelled(site: Site) -> None:
    slow = {"calls": [{"run": "setsid sleep 300 & python3 -c 'import time; time.sleep(300)'"}], "pace": 0.1}
    script = fixing(slow)
    script["conversations"][1]["turns"] = [{"text": EDIT * 20, "pace": 1.0}]
    site.model.play(script)
    ear = Ear()
    _once(site.model.calls, lambda: ear.stop.set(StopReason.CANCEL), after=1.0)
    began = time.monotonic()
    verdict = site.work(ear)
    _need(verdict == Yielded(StopReason.CANCEL), "a cancel ends it", site, verdict)
    _need(time.monotonic() - began < SECONDS, "a cancel ends it soon", site)


def outlives_its_worker(site: Site) -> None:
    """The worker is a process that is killed in the middle; the next claim is ours."""
    waiting = {"calls": [{"run": "python3 -c 'import time; time.sleep(8)'"}]}
    # Repaired twice, for agents differ in how they tell the model that they were interrupted.
    site.model.play(fixing({"calls": [{"run": "echo kept > kept.txt"}]}, waiting, {"calls": [{"run": FIX}]}))
    child = os.fork()
    if child == 0:
        _work_and_exit(site)
    site.worker = child
    site.fence += 1
    until = time.monotonic() + SECONDS
    while site.files.checkpoint is None and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if site.files.checkpoint is None:
        raise Failed("it kept no checkpoint while it worked")
    verdict = site.work()
    _need(isinstance(verdict, Done), "the next claim goes on to the end", site, verdict)
    _need("a + b" in site.read("sums.py"), "the file is repaired", site)
    _need(site.read("kept.txt"), "what was done before is still there", site)


def _work_and_exit(site: Site) -> None:
    try:
        site.work()
    finally:
        os._exit(0)


def keeps_to_its_turns(site: Site) -> None:
    turn = {"calls": [{"run": "date"}], "pace": 0.1}  # no model is so fast that nobody could interrupt it
    site.model.play({"conversations": [{"turns": [turn], "loop": True}]})
    verdict = site.work(limits=Limits(turns=3))
    found = isinstance(verdict, Broke) and verdict.code == "limit-turns"
    _need(found, "it is ended at its limit", site, verdict)
    _need(site.model.calls() <= _FEW, "the model is not asked much oftener than that", site)


def bears_a_flood(site: Site) -> None:
    site.model.play(fixing({"calls": [{"run": _FLOOD}]}))
    verdict = site.work()
    _need(isinstance(verdict, Done), "five megabytes of output don't stop it", site, verdict)


def does_not_try_again(site: Site) -> None:
    site.model.play(fixing())
    site.model.fault("overloaded", 20)
    verdict = site.work()
    found = isinstance(verdict, Broke) and verdict.code == "model-overloaded"
    _need(found, "a provider that refuses ends the attempt", site, verdict)
    _need(site.model.calls() <= _FEW, "the orchestrator alone tries again", site)


def sees_no_key(site: Site) -> None:
    site.model.play(
        fixing(
            {
                "calls": [
                    {"run": "(env; cat /proc/*/environ 2>/dev/null) | tr -c '[:print:]' '\\n' > seen.txt"}
                ]
            }
        )
    )
    verdict = site.work()
    _need(isinstance(verdict, Done), "it ends well", site, verdict)
    seen = site.read("seen.txt")
    _need(seen, "its environment is seen", site)
    _need(PLANTED not in seen, "a key of ours is nowhere in its environment", site)
    _need("a - b" not in site.read("sums.py"), "the file is repaired", site)


def _once(seen: Callable[[], object], act: Callable[[], object], *, after: float = 0.0) -> None:
    def watch() -> None:
        until = time.monotonic() + SECONDS
        while not seen() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(after)
        act()

    threading.Thread(target=watch, daemon=True).start()


def _scenario(name: str, play: Callable[[Site], None], *needs: Capability) -> Scenario:
    return Scenario(name, frozenset(needs), play)


SCENARIOS: Final = (
    _scenario("fixes a bug; its calls of the model are seen", fixes_a_bug),
    _scenario("is not believed when it has done nothing", is_not_believed),
    _scenario("shows its tool calls", shows_its_tools, Capability.EVENTS),
    _scenario("asks a person, ends, and goes on with the answer", asks, Capability.QUESTIONS),
    _scenario("waits for leave, and runs nothing that was denied", waits_for_leave, Capability.APPROVALS),
    _scenario("is cancelled and leaves no process", is_cancelled, Capability.CANCEL),
    _scenario("goes on when its worker is killed", outlives_its_worker, Capability.RESUME),
    _scenario("keeps to its turns", keeps_to_its_turns, Capability.LIMITS, Capability.EVENTS),
    _scenario("bears a flood of output", bears_a_flood, Capability.EVENTS),
    _scenario("leaves trying again to the orchestrator", does_not_try_again),
    _scenario("sees no key of ours", sees_no_key, Capability.EVENTS),
)
