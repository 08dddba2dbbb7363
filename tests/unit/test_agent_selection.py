from __future__ import annotations

from orchestrator.agents.readiness import Missing, Readiness
from orchestrator.agents.selection import Choice, NoSuitableAgent, Record, Wanted, select
from orchestrator.agents.types import AGENT_TYPES

READY = tuple(map(Readiness, AGENT_TYPES.values()))
NO_KEY = Missing("no key for a model", "Set one.")


def without(*names: str) -> tuple[Readiness, ...]:
    return tuple(one if one.kind.name not in names else Readiness(one.kind, (NO_KEY,)) for one in READY)


def chosen(found: Choice | NoSuitableAgent) -> str:
    assert isinstance(found, Choice), found
    return found.name


def test_where_nothing_speaks_against_it_the_engine_is_chosen() -> None:
    found = select(Wanted(), READY)
    assert chosen(found) == "engine"
    assert isinstance(found, Choice)
    assert "nothing speaks against it" in found.reason
    assert set(found.considered) == {"engine", "claude-code", "codex", "goose", "aider"}


def test_recordings_and_foreign_servers_are_never_chosen_unless_they_are_named() -> None:
    assert isinstance(
        select(Wanted(), without("engine", "claude-code", "codex", "goose", "aider")), NoSuitableAgent
    )
    assert chosen(select(Wanted(named="replay"), READY)) == "replay"
    assert chosen(select(Wanted(named="agentapi"), READY)) == "agentapi"


def test_without_the_engine_the_kind_of_work_decides() -> None:
    others = without("engine")
    assert chosen(select(Wanted(task_type="debugging"), others)) == "claude-code"
    assert chosen(select(Wanted(task_type="translation"), others)) == "codex"
    assert chosen(select(Wanted(task_type="automation"), others)) == "goose"


def test_a_named_kind_is_taken_or_nobody() -> None:
    assert chosen(select(Wanted(named="codex"), READY)) == "codex"
    found = select(Wanted(named="codex"), without("codex"))
    assert isinstance(found, NoSuitableAgent)
    assert found.missing == {"codex": ["no key for a model: Set one."]}


def test_a_required_capability_rules_out_who_lacks_it() -> None:
    assert chosen(select(Wanted(capabilities=("subtasks",)), READY)) == "engine"
    found = select(Wanted(capabilities=("subtasks",)), without("engine"))
    assert isinstance(found, NoSuitableAgent)
    assert set(found.missing) == {"engine", "claude-code", "codex", "goose", "aider"}


def test_a_worker_offers_what_its_agents_cannot() -> None:
    found = select(Wanted(capabilities=("gpu",)), READY)
    assert isinstance(found, NoSuitableAgent)
    assert "'gpu'" in found.missing["engine"][0]
    assert chosen(select(Wanted(capabilities=("gpu", "python")), READY, frozenset({"gpu"}))) == "engine"


def test_a_model_goes_to_who_speaks_to_its_provider() -> None:
    assert chosen(select(Wanted(model="claude-sonnet-5-5"), without("engine"))) == "claude-code"
    assert chosen(select(Wanted(model="gpt-5.2-codex"), without("engine"))) == "codex"
    assert isinstance(select(Wanted(named="codex", model="claude-sonnet-5-5"), READY), NoSuitableAgent)


def test_who_failed_at_this_step_comes_after_the_others() -> None:
    failed = {"engine": Record(failed_here=1)}
    assert chosen(select(Wanted(), READY, known=failed)) == "claude-code"
    again = {"engine": Record(failed_here=1), "claude-code": Record(failed_here=1)}
    assert chosen(select(Wanted(), READY, known=again)) == "codex"


def test_what_mostly_failed_lately_is_avoided_and_few_outcomes_say_nothing() -> None:
    few = {"engine": Record(completed=0, failed=4)}
    assert chosen(select(Wanted(), READY, known=few)) == "engine"
    many = {"engine": Record(completed=1, failed=19)}
    found = select(Wanted(), READY, known=many)
    assert chosen(found) == "claude-code"
    assert isinstance(found, Choice)
    assert "engine (1 of its last 20 steps completed)" in found.reason


def test_load_decides_between_equals() -> None:
    busy = {"claude-code": Record(slots=2, busy=2), "codex": Record(slots=2, busy=0)}
    assert chosen(select(Wanted(), without("engine"), known=busy)) == "codex"


def test_what_waits_says_what_is_missing_and_what_was_asked_for() -> None:
    wanted = Wanted(named="aider", capabilities=("gpu",))
    found = select(wanted, without("aider"))
    assert isinstance(found, NoSuitableAgent)
    assert found.detail(wanted) == {
        "agent": "aider",
        "capabilities": ["gpu"],
        "missing": {
            "aider": ["no key for a model: Set one.", "it doesn't offer 'gpu', and neither does this worker"]
        },
    }


def test_a_kind_that_asks_nobody_s_leave_does_no_task_that_requires_it() -> None:
    found = select(Wanted(named="aider", approvals=True), READY)
    assert isinstance(found, NoSuitableAgent)
    assert "leave" in found.missing["aider"][0]
    assert chosen(select(Wanted(approvals=True), without("engine", "claude-code", "codex"))) == "goose"
    assert isinstance(
        select(Wanted(approvals=True), without("engine", "claude-code", "codex", "goose")), NoSuitableAgent
    )
