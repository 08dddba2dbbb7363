"""Partitions: one process, or all, can't reach Redis or Postgres, or slowly, or never hears the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.faults.scene import Kinds, Scene
from tests.benchmarks.relay import Direction, Way


@dataclass
class NetworkFaults:
    scene: Scene

    @property
    def kinds(self) -> Kinds:
        return {
            "redis_cut": (2, lambda: self.close("redis")),
            "redis_blackhole": (2, lambda: self.block("redis")),
            "redis_slow": (1, lambda: self.slow("redis")),
            "postgres_cut": (2, lambda: self.close("postgres")),
            "postgres_blackhole": (3, lambda: self.block("postgres")),
            "postgres_slow": (1, lambda: self.slow("postgres")),
        }

    def close(self, server: str) -> bool:
        """Connections are reset, at once or for a while."""
        seconds = self.scene.chance.choice((0.0, 0.0, 1.0, 2.0)) * self.scene.lease
        return self._for(seconds, server, Way.close)

    def block(self, server: str) -> bool:
        """Nothing passes, past the lease, too; then it arrives late, or the connections turn out to be
        dead."""
        directions = self.scene.chance.choice((tuple(Direction), (Direction.BACK,)))
        dead = self.scene.chance.random() < 0.5

        def end(way: Way) -> None:
            if dead:
                way.cut()
            way.open()

        seconds = self.scene.chance.uniform(0.3, 3) * self.scene.lease
        return self._for(seconds, server, lambda way: way.block(directions), end)

    def slow(self, server: str) -> bool:
        delay = self.scene.chance.uniform(0.02, 0.2)
        return self._for(2 * self.scene.lease, server, lambda way: way.slow(delay))

    def _for(
        self,
        seconds: float,
        server: str,
        hurt: Callable[[Way], None],
        mend: Callable[[Way], None] = Way.open,
    ) -> bool:
        names = sorted(self.scene.ways)
        chosen = self.scene.chance.choice(([self.scene.chance.choice(names)], names))
        found = [self.scene.ways[name][server] for name in chosen]
        for way in found:
            hurt(way)

        def undo() -> None:
            for way in found:
                mend(way)

        self.scene.repairs.surely(seconds, undo)
        return True
