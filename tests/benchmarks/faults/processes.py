"""Workers and beat: killed, stopped past the lease, ended in order, made to die at a COMMIT."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from orchestrator.local import processes
from tests.benchmarks import crash_points
from tests.benchmarks.faults.scene import Kinds, Scene

_BUSY: Final = text("SELECT pid FROM agents WHERE step_id IS NOT NULL")
SECOND_BEAT: Final = "beat-2"


@dataclass
class ProcessFaults:
    scene: Scene

    @property
    def kinds(self) -> Kinds:
        return {
            "kill_child": (6, self.kill_child),
            "kill_main": (3, self.kill_main),
            "kill_group": (3, self.kill_group),
            "stop_child": (6, self.stop_child),
            "stop_group": (2, self.stop_group),
            "crash_before_commit": (4, lambda: self.order("before")),
            "crash_after_commit": (4, lambda: self.order("after")),
            "commit_reply_lost": (4, lambda: self.order("reply_lost")),
            "beat_stopped": (2, self.beat_stopped),
            "two_beats": (2, self.two_beats),
            "drain": (2, self.drain),
        }

    def kill_child(self) -> bool:
        pid = busy_child(self.scene)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def kill_main(self) -> bool:
        """Its children live on for a moment, as they would without a supervisor."""
        scene, name = self.scene, self.scene.worker()
        if scene.has_ended(name):
            return False
        os.kill(scene.here.pid(name), signal.SIGKILL)
        scene.repairs.after(scene.chance.uniform(0.1, 2.5), lambda: scene.here.renew(name), name)
        return True

    def kill_group(self) -> bool:
        name = self.scene.worker()
        if self.scene.has_ended(name):
            return False
        os.killpg(self.scene.here.pid(name), signal.SIGKILL)
        return True

    def stop_child(self) -> bool:
        return self._stop(busy_child(self.scene), os.kill)

    def stop_group(self) -> bool:
        name = self.scene.worker()
        return not self.scene.has_ended(name) and self._stop(self.scene.here.pid(name), os.killpg)

    def _stop(self, pid: int | None, kill: Callable[[int, int], None]) -> bool:
        scene = self.scene
        if pid is None or pid in scene.stopped:
            return False
        identity = processes.identify(pid)
        try:
            kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        scene.stopped.add(pid)

        def go_on() -> None:
            scene.stopped.discard(pid)
            if identity is not None and processes.alive(identity):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGCONT)

        scene.repairs.after(scene.chance.uniform(0.5, 3) * scene.lease, go_on)
        return True

    def order(self, what: str) -> bool:
        crash_points.lay_down(self.scene.here.folder / "order", what)
        return True

    def drain(self) -> bool:
        """SIGTERM, with the time that it takes; then it starts again."""
        name = self.scene.worker()
        if self.scene.has_ended(name):
            return False
        os.kill(self.scene.here.pid(name), signal.SIGTERM)
        return True

    def beat_stopped(self) -> bool:
        scene = self.scene
        if scene.has_ended("beat"):
            return False
        os.kill(scene.here.pid("beat"), signal.SIGKILL)
        scene.repairs.after(scene.chance.uniform(1, 5), lambda: scene.here.renew("beat"), "beat")
        return True

    def two_beats(self) -> bool:
        """A second one beside the first, as after a deployment that went wrong."""
        here, repairs = self.scene.here, self.scene.repairs
        if repairs.awaits(SECOND_BEAT):
            return False
        here.supervisor.launch(here.beat(SECOND_BEAT))
        seconds = self.scene.chance.uniform(3, 8)
        repairs.after(seconds, lambda: here.supervisor.forget(SECOND_BEAT), SECOND_BEAT)
        return True


def busy_child(scene: Scene) -> int | None:
    """A child that carries a step just now, if there is one; else any."""
    with scene.wiring.engine.connect() as connection:
        busy = {row.pid for row in connection.execute(_BUSY)}
    ours = [pid for name in scene.workers for pid in scene.children(name)]
    found = [pid for pid in ours if pid in busy] or [*ours, *ours, *scene.children("system")]
    return scene.chance.choice(found) if found else None
