"""Where a run of an external agent lives: the step's files, a HOME, its token, no way but to the gateway.

    /workspace      the checkout, where it starts
    /home/agent     its HOME, kept from one claim of the step to the next
    127.0.0.1:8461  the relay, which leads to the gateway

Without bubblewrap it is an ordinary process of this account, with its files and its network.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.agents import home_files
from orchestrator.agents.door import Door
from orchestrator.core.assignment import Assignment, Link, ModelAccess
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.workspaces.homes import TARGET, HomeOwner, Homes
from orchestrator.workspaces.kin import end_runs
from orchestrator.workspaces.programs import RUN_MARK, Mount, Program, Running
from orchestrator.workspaces.workspace import Workspace

PORT: Final = 8461
RELAY: Final = Path(__file__).with_name("relay.py")
RELAY_AT: Final = "/run/orchestrator/relay.py"
GATEWAY_AT: Final = "/run/orchestrator/gateway"
MEMORY: Final = 16 * 1024**3
"""The data of one process, or of all where there is a control group. Bun and node reserve far more of it than
they ever use, and die at once under the bound of an ordinary command."""
PLAINLY: Final = (
    "This agent runs WITHOUT a sandbox, as an ordinary process of the worker's account, with its files and "
    "its network: bubblewrap doesn't work here.\n"
)


EMPTY: Final = "empty"
"""Beside the HOME: what an agent finds in the place of a folder that is hidden from it."""


@dataclass(frozen=True, slots=True)
class Confines:
    """Where an agent would find leave, or programs to start, that nobody gave it: a repository's author, or
    itself by a tool that only writes. Folders; the first two beneath HOME, the last in the checkout."""

    lasting: Sequence[PurePosixPath] = ()
    """All that is left of its HOME when it is started anew; the last part may be a pattern."""
    sealed: Sequence[PurePosixPath] = ()
    """It reads them, and can't write there."""
    hidden: Sequence[PurePosixPath] = ()
    """It finds them empty, and can't write there."""


@dataclass(frozen=True, slots=True)
class Enclosure:
    """What a claim's agent is started in; paths and addresses are as the agent sees them."""

    folder: str
    """Its working folder, always the same for one step: agents tie their sessions to it."""
    home: str
    base_url: str
    """Has no path, like that of `ModelAccess`."""
    token: str
    home_on_disk: Path
    door: Door
    run_id: str
    _workspace: Workspace
    _assignment: Assignment

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        programs: Sequence[Path] = (),
        confines: Confines = Confines(),
    ) -> Running:
        """Starts `words` with this environment and HOME alone. `programs`: folders that it needs to read,
        found inside under their own paths. Raises WorkspaceFault where something else than a folder is in the
        place of one that is sealed or hidden: a link, above all."""
        own = tuple(Mount(at, str(at)) for at in programs if at.exists())
        return self._workspace.launch(
            Program(
                words=(*self._relay(), *words),
                environment={"HOME": self.home, **environment},
                mounts=(*self._mounts(), *own, *self._closed(confines)),
                folder=self.folder,
                mark=self.run_id,
                memory_bytes=MEMORY,
                wall_time=self._assignment.limits.wall_time,
            )
        )

    def _closed(self, confines: Confines) -> Iterator[Mount]:
        """Nothing where there is no sandbox. No process of the step lives yet: what is seen here stays."""
        if self.door.path is None:
            return
        for path in confines.sealed:
            _make(self.home_on_disk, path)
            yield Mount(self.home_on_disk / path, f"{TARGET}/{path}")
        empty = self.home_on_disk.parent / EMPTY
        empty.mkdir(exist_ok=True)
        for path in confines.hidden:
            _make(self._workspace.tree, path)
            yield Mount(empty, f"{self.folder}/{path}")

    def _relay(self) -> tuple[str, ...]:
        if self.door.path is None:
            return ()
        return (sys.executable, "-I", "-S", RELAY_AT, str(PORT), GATEWAY_AT, "--")

    def _mounts(self) -> tuple[Mount, ...]:
        if self.door.path is None:
            return ()
        return (
            Mount(self.home_on_disk, TARGET, writable=True),
            Mount(RELAY, RELAY_AT),
            Mount(self.door.path, GATEWAY_AT, writable=True),
        )


@contextmanager
def enclosed(
    workspace: Workspace, homes: Homes, assignment: Assignment, access: ModelAccess, link: Link
) -> Iterator[Enclosure]:
    """Opens the step's home and the door. Ends first what an earlier run of the step left on this machine:
    two agents must not share a home."""
    home = homes.open(HomeOwner(assignment.task_id, assignment.step_id))
    end_runs(RUN_MARK, lambda run: is_run_of(home, run))
    workspace.count_in(home)
    if not workspace.is_confined:
        link.log("system", PLAINLY)
    with Door(access.base_url, home.parent if workspace.is_confined else None) as door:
        yield Enclosure(
            folder=workspace.visible_path,
            home=workspace.inside(Mount(home, TARGET)),
            base_url=f"http://127.0.0.1:{PORT if door.path else door.port}",
            token=access.token,
            home_on_disk=home,
            door=door,
            run_id=f"{os.getpid()}-{_dweller(home)}-{assignment.fence}",
            _workspace=workspace,
            _assignment=assignment,
        )


def _make(folder: Path, path: PurePosixPath) -> None:
    try:
        home_files.make_folder(folder, path)
    except OSError as error:
        text = (
            f"{path} is no ordinary folder ({error.strerror}). The agent looks there for settings by which it"
            " may act unasked, and calls of this step need approval: that can't be promised with a link."
        )
        raise WorkspaceFault("agent-settings-open", text, ErrorClass.VALIDATION) from error


def is_run_of(home: Path, run_id: str) -> bool:
    """Whether it is that of an agent with this home; other installations' steps may have the same names."""
    return run_id.split("-")[1:2] == [_dweller(home)]


def _dweller(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
