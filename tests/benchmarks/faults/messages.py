"""Messages twice, late and out of order; and two sweeps at once, which send more of them."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.bootstrap import Wiring
from orchestrator.db import publishing
from orchestrator.db.sql import StepRef
from orchestrator.queues.names import QueueName
from orchestrator.tasks import sweep
from orchestrator.tasks.publish import send_step
from tests.benchmarks.faults.scene import Kinds, Scene

_SOME_STEPS: Final = text(
    "SELECT tenant_id, task_id, workflow_id, id FROM steps WHERE fence > 0 OR ready_at IS NOT NULL"
    " ORDER BY claimed_at DESC NULLS FIRST LIMIT 40"
)
_ANY: Final = text(
    "SELECT s.tenant_id, s.id, s.task_id, s.workflow_id, s.key, s.number, s.kind, s.priority, s.canvas,"
    " s.signature, 1 AS total FROM steps s WHERE s.id = :step"
)
_STEP_QUEUES: Final = tuple(
    queue.value for queue in (QueueName.CRITICAL, QueueName.HIGH, QueueName.MEDIUM, QueueName.LOW)
)


@dataclass
class MessageFaults:
    scene: Scene

    @property
    def kinds(self) -> Kinds:
        return {
            "duplicates": (6, self.duplicates),
            "reordered": (3, self.reordered),
            "delayed": (3, self.delayed),
            "two_sweeps": (4, self.two_sweeps),
        }

    def duplicates(self) -> bool:
        chance, wiring = self.scene.chance, self.scene.wiring
        with wiring.engine.connect() as connection:
            rows = list(connection.execute(_SOME_STEPS))
            chosen = chance.sample(rows, min(len(rows), 5))
            found = [
                one
                for row in chosen
                for one in publishing.queued(connection, [StepRef(*row)]) or _any_status(connection, row)
            ]
        for step in found:
            for _ in range(chance.randint(1, 3)):
                send_step(wiring, step)
        return bool(found)

    def reordered(self) -> bool:
        """All that waits, in another order, and some of it in a queue of another priority."""
        found = [message for messages in self._taken().values() for message in messages]
        self.scene.chance.shuffle(found)
        with self.scene.here.client() as client:
            for message in found:
                client.lpush(self.scene.chance.choice(_STEP_QUEUES), message)
        return len(found) > 1

    def delayed(self) -> bool:
        """What waits is gone, and comes when the sweep may have sent it again and it may have been done."""
        found = self._taken()

        def arrive() -> None:
            with contextlib.suppress(RedisError), self.scene.here.client() as client:
                for queue, messages in found.items():
                    client.lpush(queue, *messages)

        if found:
            self.scene.repairs.after(self.scene.chance.uniform(0.5, 5) * self.scene.lease, arrive)
        return bool(found)

    def _taken(self) -> dict[str, list[bytes]]:
        with self.scene.here.client() as client, client.pipeline() as together:
            for queue in _STEP_QUEUES:
                together.lrange(queue, 0, -1).delete(queue)
            replies = together.execute()
        return {queue: found for queue, found in zip(_STEP_QUEUES, replies[::2], strict=True) if found}

    def two_sweeps(self) -> bool:
        """Nobody waits for them here: they may wait for a row that only this thread's next step lets go."""
        for _ in range(2):
            threading.Thread(target=_sweep, args=(self.scene.wiring,), daemon=True).start()
        return True


def _any_status(connection: Any, row: Any) -> list[publishing.Publishable]:
    """A step that is running, parked or over: its message comes late."""
    found = connection.execute(_ANY, {"step": row.id}).mappings()
    return [publishing._publishable(one) for one in found]


def _sweep(wiring: Wiring) -> None:
    """Without the lock that lets one of two sweeps wait: even then they must do no harm."""
    with contextlib.suppress(SQLAlchemyError):
        sweep._sweep(wiring)
