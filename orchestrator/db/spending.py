"""Money: what a call reserves before it is sent, and what is settled after. Each is one transaction.

Reservations of one task tree are made one after the other, under the lock of its row in `budgets`. An open
one counts while its claim holds and its gateway lives. The lock order: tasks, steps, budgets, breakers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core import spending
from orchestrator.core.assignment import Budget
from orchestrator.core.breaker import BreakerState, CircuitBreaker
from orchestrator.core.spending import Spending
from orchestrator.db import breakers
from orchestrator.db.breakers import BreakerKind, Tried
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.gateways import SILENT_SECONDS
from orchestrator.db.locks import LOCK_SQL
from orchestrator.db.run_tokens import GOOD_SQL, Run, run_of
from orchestrator.db.sql import Direct, Prepared, StepRef, TaskRef, one, statement

_UNBOUNDED: Final = Budget()
MOST_AT_ONCE: Final = 16
"""Calls of one run in flight."""
MOST_THROTTLED: Final = timedelta(hours=1)
"""Longer than this no provider's wish is believed."""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call that somebody with a token wants to make. `cost_usd` None: the model's price isn't known."""

    id: str
    sha256: str
    gateway_id: str
    provider: str
    model: str
    dialect: str
    streamed: bool
    cost_usd: Decimal | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no call is made; `code` is stable."""

    code: str
    message: str
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one call used; the first four don't overlap. `cache_write_hour`: those of `cache_write` that are
    kept for an hour; no row has them, the cost alone. `estimated`: the provider didn't say."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_hour: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended. `used` None: nothing that is paid for. `throttled`: the pause that was asked for."""

    outcome: str
    http_status: int | None
    error_code: str | None
    used: Tokens | None
    cost_usd: Decimal | None
    tried: Tried
    first_byte_after: timedelta | None = None
    throttled: timedelta | None = None


_OPEN_SQL: Final = f"""
    SELECT coalesce(sum(c.reserved_usd), 0) AS held_usd, coalesce(sum(c.reserved_tokens), 0) AS held_tokens,
        count(*) AS held_calls, count(*) FILTER (WHERE c.sha256 = r.sha256) AS own_calls
    FROM model_calls c
    JOIN steps cs ON cs.tenant_id = c.tenant_id AND cs.id = c.step_id
    JOIN gateways g ON g.tenant_id = c.tenant_id AND g.id = c.gateway_id
    WHERE c.tenant_id = r.tenant_id AND c.root_id = r.root_id AND c.ended_at IS NULL
      AND cs.fence = c.fence AND cs.status = 'running' AND cs.lease_until > clock_timestamp()
      AND g.heartbeat_at > clock_timestamp() - make_interval(secs => {SILENT_SECONDS})
"""
_STEP_SQL: Final = """
    SELECT coalesce(sum(u.cost_usd), 0) AS step_usd, count(*) AS step_calls,
        coalesce(sum(u.input_tokens + u.output_tokens + u.cache_read_tokens + u.cache_write_tokens), 0)
            AS step_tokens
    FROM usage u WHERE r.agent_type <> 'engine' AND u.tenant_id = r.tenant_id AND u.step_id = r.step_id
"""
"""Our own engine stops by itself, with a word of its own; others are stopped here."""
_ASKED: Final = Prepared(
    "model_call_asked",
    f"""
    SELECT 1 FROM run_tokens r JOIN budgets b ON b.tenant_id = r.tenant_id AND b.root_id = r.root_id
    WHERE r.sha256 = :sha FOR UPDATE OF b;
    SELECT r.tenant_id, r.task_id, r.root_id, r.workflow_id, r.step_id, r.sha256, r.fence, r.conversation,
        r.agent_type, r.models, t.budget, b.spent_usd, b.spent_tokens, b.calls, h.*, n.*,
        (SELECT k.state FROM breakers k
         WHERE k.tenant_id = r.tenant_id AND k.kind = 'provider' AND k.name = :provider) AS circuit,
        (SELECT w.until_at - clock_timestamp() FROM throttles w
         WHERE w.tenant_id = r.tenant_id AND w.provider = :provider AND w.model = :model
           AND w.until_at > clock_timestamp()) AS throttled
    FROM {GOOD_SQL}
    JOIN tasks t ON t.tenant_id = r.tenant_id AND t.id = r.root_id
    JOIN budgets b ON b.tenant_id = r.tenant_id AND b.root_id = r.root_id
    CROSS JOIN LATERAL ({_OPEN_SQL}) h
    CROSS JOIN LATERAL ({_STEP_SQL}) n
    WHERE r.sha256 = :sha
    """,
)
_RESERVE: Final = Prepared(
    "model_call_reserve",
    """
    INSERT INTO model_calls (tenant_id, id, sha256, task_id, root_id, step_id, fence, conversation,
        agent_type, gateway_id, provider, model, dialect, streamed, reserved_usd, reserved_tokens)
    VALUES (:tenant, :id, :sha, :task, :root, :step, :fence, :conversation, :agent_type, :gateway, :provider,
        :model, :dialect, :streamed, :cost, :tokens)
    """,
    fence="int",
    conversation="int",
    streamed="boolean",
    cost="numeric",
    tokens="bigint",
)


def reserve(
    connection: Connection, call: NewCall, rule: CircuitBreaker, of_step: Budget = _UNBOUNDED
) -> Run | Refusal:
    """Admits a call and reserves what it may cost, or says why not. The pure half is `core.spending`.

    `of_step`: what one step of another agent than our engine may use.
    """
    found = _asked(connection, call, of_step)
    if isinstance(found, Refusal):
        return found
    run, circuit = found
    if circuit is not BreakerState.CLOSED:
        held = breakers.ask(connection, run.step.tenant_id, BreakerKind.PROVIDER, call.provider, rule)
        if held is not None:
            return _left_alone(call, held.retry_after)
    _RESERVE.run(
        connection,
        {
            "tenant": run.step.tenant_id,
            "id": call.id,
            "sha": run.sha256,
            "task": run.step.task_id,
            "root": run.root_id,
            "step": run.step.step_id,
            "fence": run.fence,
            "conversation": run.conversation,
            "agent_type": run.agent_type,
            "gateway": call.gateway_id,
            "provider": call.provider,
            "model": call.model,
            "dialect": call.dialect,
            "streamed": call.streamed,
            "cost": call.cost_usd or Decimal(0),
            "tokens": call.tokens,
        },
    )
    return run


def look(
    connection: Connection, call: NewCall, rule: CircuitBreaker, of_step: Budget = _UNBOUNDED
) -> Run | Refusal:
    """Whether a run that may still spend may make a call that costs nothing. Reserves nothing, and never
    probes a provider that is left alone."""
    found = _asked(connection, call, of_step)
    if isinstance(found, Refusal):
        return found
    run, circuit = found
    return run if circuit is BreakerState.CLOSED else _left_alone(call, rule.recovery_timeout)


def _asked(connection: Connection, call: NewCall, of_step: Budget) -> tuple[Run, BreakerState] | Refusal:
    row = one(connection, _ASKED, sha=call.sha256, provider=call.provider, model=call.model)
    if row is None:
        return Refusal("run-token-invalid", "This token is not that of a run that goes on.")
    run = run_of(row)
    return _refusal(call, run, row, of_step) or (run, BreakerState(row["circuit"] or BreakerState.CLOSED))


def _left_alone(call: NewCall, again_after: timedelta) -> Refusal:
    text = f"{call.provider} has failed again and again; nothing is sent to it for now."
    return Refusal("circuit-open", text, again_after)


def _refusal(call: NewCall, run: Run, row: dict[str, Any], of_step: Budget) -> Refusal | None:
    if not run.may_use(call.model):
        return Refusal("model-not-allowed", f"This run may not use {call.model[:80]!r}.")
    budget = spending.budget_of(row["budget"])
    if budget.cost_usd is not None and call.cost_usd is None:
        return Refusal("price-unknown", spending.price_missing(call.model))
    spent = Spending(row["spent_usd"], row["spent_tokens"], row["calls"])
    held = Spending(row["held_usd"], int(row["held_tokens"]), row["held_calls"])
    used_up = spending.exhausted(budget, spent, held)
    if used_up is not None:
        return Refusal("budget-exhausted", used_up)
    of_run = Spending(row["step_usd"], int(row["step_tokens"]), row["step_calls"])
    used_up = spending.exhausted(of_step, of_run, Spending(), "step")
    if used_up is not None:
        return Refusal("run-limit-reached", used_up)
    if row["own_calls"] >= MOST_AT_ONCE:
        text = f"This run has {MOST_AT_ONCE} calls in flight."
        return Refusal("too-many-calls", text, timedelta(seconds=1))
    if row["throttled"] is not None:
        text = f"{call.provider} has asked for a pause of {call.model[:80]}."
        return Refusal("provider-throttled", text, row["throttled"])
    return None


_SETTLE: Final = statement(
    """
    SELECT 1 FROM model_calls c JOIN steps s ON s.tenant_id = c.tenant_id AND s.id = c.step_id
    WHERE c.tenant_id = :tenant AND c.id = :id FOR KEY SHARE OF s;
    WITH ended AS (
        UPDATE model_calls SET outcome = :outcome, http_status = :status, error_code = :error,
            input_tokens = :input, output_tokens = :output, cache_read_tokens = :cache_read,
            cache_write_tokens = :cache_write, estimated = :estimated, cost_usd = :cost,
            first_byte_at = started_at + make_interval(secs => :first_byte), ended_at = clock_timestamp()
        WHERE tenant_id = :tenant AND id = :id AND (ended_at IS NULL OR outcome = 'lost')
        RETURNING *
    ), used AS (
        INSERT INTO usage (tenant_id, task_id, step_id, conversation, call_id, provider, agent_type, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_usd)
        SELECT tenant_id, task_id, step_id, conversation, id, provider, agent_type, model, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, cost_usd
        FROM ended WHERE :counts
    ), spent AS (
        UPDATE budgets b SET spent_usd = b.spent_usd + coalesce(e.cost_usd, 0),
            spent_tokens = b.spent_tokens + e.input_tokens + e.output_tokens + e.cache_read_tokens
                + e.cache_write_tokens,
            calls = b.calls + 1
        FROM ended e WHERE :counts AND b.tenant_id = e.tenant_id AND b.root_id = e.root_id
        RETURNING b.*
    ), pause AS (
        INSERT INTO throttles (tenant_id, provider, model, until_at, status)
        SELECT tenant_id, provider, model, clock_timestamp() + make_interval(secs => :pause), http_status
        FROM ended WHERE :pause > 0
        ON CONFLICT (tenant_id, provider, model) DO UPDATE SET status = excluded.status,
            until_at = greatest(throttles.until_at, excluded.until_at), updated_at = clock_timestamp()
    )
    SELECT e.root_id, e.provider, t.budget, s.spent_usd, s.spent_tokens, s.calls, s.warned_for
    FROM ended e JOIN tasks t ON t.tenant_id = e.tenant_id AND t.id = e.root_id
    LEFT JOIN spent s ON true
    """
)
"""The step's row first: whoever has it may keep it for a while, and meanwhile the tree's siblings go on."""


@dataclass(frozen=True, slots=True)
class Settled:
    """`warn`: four fifths of the tree's budget are gone, and nobody has been told yet."""

    root: TaskRef
    budget: Budget
    warn: bool


def settle(
    connection: Connection, tenant_id: str, call_id: str, ended: Ended, rule: CircuitBreaker
) -> Settled | None:
    """Writes down what a call used, whatever has become of its run since. Twice is once (None)."""
    used = ended.used or Tokens()
    pause = min(ended.throttled or timedelta(0), MOST_THROTTLED)
    row = one(
        connection,
        _SETTLE,
        tenant=tenant_id,
        id=call_id,
        outcome=ended.outcome,
        status=ended.http_status,
        error=ended.error_code,
        input=used.input,
        output=used.output,
        cache_read=used.cache_read,
        cache_write=used.cache_write,
        estimated=used.estimated,
        cost=ended.cost_usd,
        first_byte=None if ended.first_byte_after is None else ended.first_byte_after.total_seconds(),
        counts=ended.used is not None,
        pause=pause.total_seconds(),
    )
    if row is None:
        return None
    breakers.record(
        connection, tenant_id, BreakerKind.PROVIDER, row["provider"], rule, ended.tried, ended.error_code
    )
    budget = spending.budget_of(row["budget"])
    near = row["calls"] is not None and spending.nearly_exhausted(
        budget, Spending(row["spent_usd"], row["spent_tokens"], row["calls"])
    )
    return Settled(
        TaskRef(tenant_id, row["root_id"]), budget, near and row["warned_for"] != _bounds(row["budget"])
    )


_WARN: Final = statement(
    LOCK_SQL
    + """
    UPDATE budgets b SET warned_for = t.bounds
    FROM (SELECT tenant_id, id, budget - 'max_duration' AS bounds FROM tasks) t
    WHERE b.tenant_id = :tenant AND b.root_id = :task AND t.tenant_id = b.tenant_id AND t.id = b.root_id
      AND b.warned_for IS DISTINCT FROM t.bounds
    RETURNING b.spent_usd, b.spent_tokens, b.calls, t.bounds
    """
)


def warn(connection: Connection, root: TaskRef) -> bool:
    """The event `budget` on the tree's root, once for each height of its budget; takes the task's lock."""
    row = one(connection, _WARN, tenant=root.tenant_id, task=root.task_id)
    if row is None:
        return False
    data = {
        "spent": {
            "cost_usd": str(row["spent_usd"]),
            "tokens": row["spent_tokens"],
            "turns": row["calls"],
        },
        "budget": row["bounds"],
    }
    append_events(connection, root, [EventDraft("progress", "budget", data)])
    return True


def _bounds(budget: dict[str, Any]) -> dict[str, Any]:
    return {name: bound for name, bound in budget.items() if name != "max_duration"}


_RELEASE: Final = Prepared(
    "model_call_release",
    "DELETE FROM model_calls WHERE tenant_id = :tenant AND id = :id AND ended_at IS NULL",
)


def release(connection: Connection, tenant_id: str, call_id: str) -> None:
    """Of a call that was never sent: as if nobody had asked."""
    _RELEASE.run(connection, {"tenant": tenant_id, "id": call_id})


_EVIDENCE: Final = statement(
    "UPDATE model_calls SET evidence_key = :key WHERE tenant_id = :tenant AND id = :id"
)


def keep_evidence(connection: Connection, tenant_id: str, call_id: str, key: str) -> None:
    """Where the artifact store has what was said."""
    connection.execute(_EVIDENCE, {"tenant": tenant_id, "id": call_id, "key": key})


_SPENT: Final = statement(
    """
    SELECT b.spent_usd, b.spent_tokens, b.calls FROM tasks t
    JOIN budgets b ON b.tenant_id = t.tenant_id AND b.root_id = t.root_id
    WHERE t.tenant_id = :tenant AND t.id = :task
    """
)


def spent(connection: Connection, task: TaskRef) -> Spending:
    """By live models, in the whole tree that the task belongs to."""
    row = one(connection, _SPENT, tenant=task.tenant_id, task=task.task_id)
    return Spending() if row is None else Spending(row["spent_usd"], row["spent_tokens"], row["calls"])


_LAST: Final = Prepared(
    "model_call_last",
    """
    SELECT outcome = 'failed' AND (http_status IS NULL OR http_status NOT BETWEEN 400 AND 499
        OR http_status = 429) AS failed
    FROM model_calls
    WHERE tenant_id = :tenant AND task_id = :task AND step_id = :step AND fence = :fence
      AND ended_at IS NOT NULL
    ORDER BY started_at DESC LIMIT 1
    """,
    fence="int",
)


def was_failed_by_provider(connection: Connection | Direct, step: StepRef, fence: int) -> bool:
    """Whether the last call of a claim failed, and not by what it asked for."""
    keys = {"tenant": step.tenant_id, "task": step.task_id, "step": step.step_id}
    row = one(connection, _LAST, **keys, fence=fence)
    return row is not None and bool(row["failed"])
