"""What is done to an installation, one fault at a time, chosen by a seeded random."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import psycopg2
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from tests.benchmarks.faults.machine import MachineFaults
from tests.benchmarks.faults.messages import MessageFaults
from tests.benchmarks.faults.network import NetworkFaults
from tests.benchmarks.faults.processes import ProcessFaults
from tests.benchmarks.faults.remotes import RemoteFaults
from tests.benchmarks.faults.scene import Kinds, Scene
from tests.benchmarks.faults.servers import ServerFaults


@dataclass
class Faults:
    """Injects; `tick` must be called often. Used by the thread that owns the installation."""

    scene: Scene
    only: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Kinds = field(init=False)
    left_out: list[str] = field(init=False)
    """Kinds that this machine, or this account, doesn't allow."""

    def __post_init__(self) -> None:
        machine = MachineFaults(self.scene)
        found = {
            **ProcessFaults(self.scene).kinds,
            **ServerFaults(self.scene).kinds,
            **NetworkFaults(self.scene).kinds,
            **MessageFaults(self.scene).kinds,
            **RemoteFaults(self.scene).kinds,
            **machine.kinds,
        }
        self.kinds = {name: found[name] for name in self.only or found}
        self.left_out = machine.left_out

    def inject(self) -> str | None:
        chance, names = self.scene.chance, list(self.kinds)
        name = chance.choices(names, [self.kinds[name][0] for name in names])[0]
        try:
            done = self.kinds[name][1]()
        except (SQLAlchemyError, psycopg2.Error, KombuError, RedisError, OSError):
            return None  # what should have been hurt is down already
        if not done:
            return None
        self.counts[name] += 1
        return name

    def tick(self) -> None:
        """Does what has become due, and starts again what has died."""
        scene = self.scene
        scene.repairs.do_due()
        for name in (*scene.workers, "system", "beat"):
            if scene.has_ended(name) and not scene.repairs.awaits(name):
                scene.here.renew(name)

    def stop(self) -> None:
        """All is repaired: no order is open, nobody is stopped, everybody runs."""
        self.scene.here.folder.joinpath("order").unlink(missing_ok=True)
        self.scene.repairs.do_all()
        self.tick()
