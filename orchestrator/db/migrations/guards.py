"""Triggers of the first schema: a terminal row keeps what it says, whoever writes."""

from __future__ import annotations

from typing import Final

_TERMINAL: Final = "('completed', 'failed', 'cancelled')"
_REFUSE: Final = """
CREATE FUNCTION refuse_change_of_ended_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % has ended as %: it stays so', TG_TABLE_NAME, OLD.id, TG_ARGV[0]
        USING ERRCODE = 'integrity_constraint_violation';
END $$
"""
GUARDS: Final = (
    _REFUSE,
    f"""
    CREATE TRIGGER steps_terminal BEFORE UPDATE ON steps FOR EACH ROW
    WHEN (OLD.status IN {_TERMINAL}
          AND (OLD.status, OLD.attempt, OLD.fence, OLD.result, OLD.result_commit, OLD.error, OLD.waiting_on)
              IS DISTINCT FROM
              (NEW.status, NEW.attempt, NEW.fence, NEW.result, NEW.result_commit, NEW.error, NEW.waiting_on))
    EXECUTE FUNCTION refuse_change_of_ended_row('a terminal step')
    """,
    f"""
    CREATE TRIGGER tasks_terminal BEFORE UPDATE ON tasks FOR EACH ROW
    WHEN (OLD.status IN {_TERMINAL} AND NEW.workflow_number = OLD.workflow_number
          AND (OLD.status, OLD.outcome, OLD.result, OLD.tip_commit, OLD.waiting_on)
              IS DISTINCT FROM (NEW.status, NEW.outcome, NEW.result, NEW.tip_commit, NEW.waiting_on))
    EXECUTE FUNCTION refuse_change_of_ended_row('a terminal task')
    """,
    """
    CREATE TRIGGER workflows_terminal BEFORE UPDATE ON workflows FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL
          AND (OLD.phase, OLD.result, OLD.ended_at) IS DISTINCT FROM (NEW.phase, NEW.result, NEW.ended_at))
    EXECUTE FUNCTION refuse_change_of_ended_row('an ended workflow')
    """,
)
