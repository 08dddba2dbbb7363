"""Agents that speak the Agent Client Protocol: Codex, Goose, Claude, Kilo and whatever else does.

The protocol's version 1 over the program's pipes. What differs from agent to agent stands in its profile: its
words, its environment, its files, and how it says that it failed, which is not the same for any two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

from acp import PROTOCOL_VERSION, RequestError, text_block
from acp.client.connection import ClientSideConnection
from acp.schema import (
    ClientCapabilities,
    ElicitationCapabilities,
    ElicitationFormCapabilities,
    Implementation,
    InitializeResponse,
    PromptResponse,
)

from orchestrator.agents import home_files
from orchestrator.agents.acp_client import Client
from orchestrator.agents.acp_pipes import AcpPipes
from orchestrator.agents.external import AgentBroke, Leave, Talk, TurnEnd, flooded, multiplied
from orchestrator.agents.launch import Confines, Enclosure
from orchestrator.agents.oversight import Cut, Overseer
from orchestrator.agents.programs import Program, find
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.redaction import beginning
from orchestrator.core.verdict import Broke
from orchestrator.engine.untrusted import storable
from orchestrator.workspaces.programs import Running

LOOK_SECONDS: Final = 0.1
OPEN_SECONDS: Final = 60.0
"""To start, to say what it can do, and to open a session."""
CANCEL_SECONDS: Final = 2.5
"""For the end of a prompt that was cancelled; five seconds after a stop all of it is killed in any case."""
CLOSING_SECONDS: Final = 0.7
"""For an end by itself when its input is closed, and then again by SIGTERM."""
AUTH_REQUIRED: Final = -32000
MOST_NAME: Final = 500
SET_TITLE: Final = "session/set_title"


class Profile(Protocol):
    """One agent that speaks the protocol."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> str:
        """Its name in `data/agents.toml`."""

    def words(self, assignment: Assignment) -> Sequence[str]:
        """What follows the program's own words."""

    def prepare(self, assignment: Assignment, enclosure: Enclosure) -> Mapping[str, str]:
        """Writes what it needs below its HOME; its environment."""

    def settings(self, assignment: Assignment) -> Settings: ...

    @property
    def confines(self) -> Confines:
        """Sealed and hidden is only where calls need a person's leave: who needs none has nothing to gain."""

    def problem(self, said: Said) -> Broke | None:
        """What went wrong although it says that it ended its turn."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is set in a session that was opened. `mode`: None leaves its own; `options`: config options."""

    mode: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    """`_meta` of session/new."""
    title: str | None = None
    """Given to a new session, where the agent would else ask a model for one."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an agent said in one prompt, for its profile to judge."""

    text: str
    stop_reason: str
    meta: Sequence[Mapping[str, Any]]
    """`_meta` of the updates that had any."""


@dataclass(frozen=True, slots=True)
class AcpAdapter:
    """Drives whatever `profile` describes. `locate` finds an installed program by its name."""

    profile: Profile
    locate: Callable[[str], Program | None] = find

    @property
    def name(self) -> str:
        return self.profile.name

    @contextmanager
    def open(
        self,
        assignment: Assignment,
        enclosure: Enclosure,
        overseer: Overseer,
        session_id: str | None,
        leave: Leave | None,
        /,
    ) -> Iterator[Talk]:
        program = self.locate(self.profile.program)
        if program is None:
            raise AgentBroke(_missing(self.profile))
        confines = self.profile.confines
        home_files.keep_only(enclosure.home_on_disk, confines.lasting)
        environment = self.profile.prepare(assignment, enclosure)
        words = (*program.command, *self.profile.words(assignment))
        closed = confines if assignment.approvals else Confines()
        running = enclosure.start(words, environment, programs=program.folders, confines=closed)
        try:
            with asyncio.Runner() as runner:
                talk = _AcpTalk(self.profile, assignment, enclosure, overseer, leave, running, runner)
                try:
                    talk.open(session_id)
                    yield talk
                finally:
                    talk.close()
        finally:
            running.end(closing=CLOSING_SECONDS, terminating=CLOSING_SECONDS)


class _AcpTalk:
    """A running agent with an open session; its event loop runs only while something is asked of it."""

    def __init__(
        self,
        profile: Profile,
        assignment: Assignment,
        enclosure: Enclosure,
        overseer: Overseer,
        leave: Leave | None,
        running: Running,
        runner: asyncio.Runner,
    ) -> None:
        self.session_id = ""
        self.is_resumed = False
        self._profile = profile
        self._assignment = assignment
        self._folder = enclosure.folder
        self._overseer = overseer
        self._client: Any = Client(  # methods that we don't offer are answered so
            overseer, assignment.approvals, leave
        )
        self._running = running
        self._runner = runner
        self._connection: ClientSideConnection | None = None
        self._pipes: AcpPipes | None = None

    # --- opening and closing --------------------------------------------------------------------------------

    def open(self, session_id: str | None) -> None:
        self._runner.run(self._within(self._open(session_id), timedelta(seconds=OPEN_SECONDS)))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._runner.run(self._close())

    async def _close(self) -> None:
        if self._connection is not None:
            await asyncio.wait_for(self._connection.close(), CLOSING_SECONDS)

    async def _within(self, work: Any, at_most: timedelta) -> Any:
        """`work`, watched over: a stop or a limit ends it, too."""
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        until = loop.time() + at_most.total_seconds()
        while not (await asyncio.wait({task}, timeout=LOOK_SECONDS))[0]:
            if self._pipes is not None:
                self._pipes.look()
            if self._overseer.link.stop.is_hard() or loop.time() >= until:
                task.cancel()
                await asyncio.wait({task}, timeout=CLOSING_SECONDS)
                raise AgentBroke(self._silent())
        try:
            return task.result()
        except RequestError as error:
            raise AgentBroke(_of_request(self._profile.name, error)) from error
        except (ConnectionError, OSError) as error:
            raise AgentBroke(self._gone()) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise AgentBroke(_against_protocol(self._profile.name)) from error

    async def _open(self, session_id: str | None) -> None:
        self._pipes = await AcpPipes.over(self._running, self._overseer.complained)
        self._connection = ClientSideConnection(self._client, self._pipes, use_unstable_protocol=True)
        _guard(self._connection._conn)  # noqa: SLF001 - the SDK logs whatever is wrong, message by message
        able = await self._connection.initialize(
            PROTOCOL_VERSION,
            ClientCapabilities(elicitation=ElicitationCapabilities(form=ElicitationFormCapabilities())),
            Implementation(name="orchestrator", version="1"),
        )
        settings = self._profile.settings(self._assignment)
        if session_id is not None and await self._resume(able, session_id):
            self.session_id, self.is_resumed = session_id, True
        else:
            made = await self._connection.new_session(self._folder, mcp_servers=[], **settings.meta)
            self.session_id = _name(made.session_id)
            await self._entitle(settings.title)
        self._client.session_id = self.session_id
        if settings.mode is not None:
            await self._connection.set_session_mode(self.session_id, settings.mode)
        for option, value in settings.options.items():
            await self._connection.set_config_option(option, self.session_id, value)

    async def _resume(self, able: InitializeResponse, session_id: str) -> bool:
        """Whether the agent has that session still. One that is loaded is told again from its beginning,
        which nobody listens to."""
        connection = self._opened()
        capabilities = able.agent_capabilities
        sessions = capabilities.session_capabilities if capabilities is not None else None
        try:
            if sessions is not None and sessions.resume is not None:
                await connection.resume_session(session_id, self._folder, mcp_servers=[])
            elif capabilities is not None and capabilities.load_session:
                await connection.load_session(self._folder, session_id, mcp_servers=[])
            else:
                return False
        except RequestError as error:
            if error.code == AUTH_REQUIRED:
                raise
            self._overseer.link.log("system", f"The agent's session is lost: {error}\n")
            return False
        return True

    async def _entitle(self, title: str | None) -> None:
        """By a method that is not in the protocol's first version: who doesn't know it has no title."""
        if title is not None:
            request = {"sessionId": self.session_id, "title": title}
            with contextlib.suppress(RequestError):
                await self._opened()._conn.send_request(SET_TITLE, request)  # noqa: SLF001 - it has no name yet

    def _opened(self) -> ClientSideConnection:
        assert self._connection is not None  # noqa: S101 - `open` comes first
        return self._connection

    # --- one prompt -----------------------------------------------------------------------------------------

    def prompt(self, text: str, /) -> TurnEnd:
        return self._runner.run(self._prompt(text))

    async def _prompt(self, text: str) -> TurnEnd:
        connection, client, pipes = self._opened(), self._client, self._pipes
        assert pipes is not None  # noqa: S101 - `open` comes first
        client.begin()
        pipes.begin()
        task = asyncio.ensure_future(connection.prompt(self.session_id, [text_block(text)]))
        cut = None
        while not task.done() and not client.wish:
            pipes.look()
            cut = self._overseer.look()
            if cut is not None:
                break
            if self._running.too_many():
                raise AgentBroke(multiplied(self._profile.name))
            await asyncio.wait(
                (task, *client.wished()), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        if not task.done():
            await self._cancel(task, cut)
        ended = self._ended(task, cut)
        client.end()
        return ended

    async def _cancel(self, task: asyncio.Future[PromptResponse], cut: Cut | None) -> None:
        """By protocol; one that doesn't end then is ended with its program, unless it has to go on."""
        with contextlib.suppress(ConnectionError, OSError, RequestError):
            await self._opened().cancel(self.session_id)
        self._client.cancelled()
        await asyncio.wait({task}, timeout=CANCEL_SECONDS)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSING_SECONDS)
            if cut is Cut.MESSAGE:
                raise AgentBroke(self._silent())

    def _ended(self, task: asyncio.Future[PromptResponse], cut: Cut | None) -> TurnEnd:
        client = self._client
        text, wish = client.last_words(), client.wish
        if cut is not None or wish is not None:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                task.result()
            return TurnEnd(text, cut, wish)
        try:
            response = task.result()
        except RequestError as error:
            return TurnEnd(text, problem=_of_request(self._profile.name, error))
        except (ConnectionError, OSError):
            return TurnEnd(text, problem=self._gone())
        except (ValueError, TypeError, RecursionError):
            return TurnEnd(text, problem=_against_protocol(self._profile.name))
        if response.stop_reason == "cancelled" and client.was_denied:
            return TurnEnd(text, Cut.DENIED)
        said = Said(text, response.stop_reason, tuple(client.meta))
        return TurnEnd(text, problem=_of_reason(self._profile.name, said) or self._profile.problem(said))

    def _gone(self) -> Broke:
        if self._pipes is not None and self._pipes.fault is not None:
            return flooded(self._profile.name, self._pipes.fault)
        code = self._running.wait(1.0)
        ended = "closed its output" if code is None else f"ended with code {code}"
        text = f"{self._profile.name} {ended} in the middle of its work."
        return Broke("agent-program-ended", text, ErrorClass.AGENT)

    def _silent(self) -> Broke:
        text = f"{self._profile.name} did not answer in time."
        return Broke("agent-program-silent", text, ErrorClass.AGENT)


def _guard(connection: Any) -> None:
    """What the agent asks or tells against the protocol is answered so, or passed over: it is no fault of
    ours that a log should tell of, as often as the agent likes."""
    handle = connection._handler  # noqa: SLF001 - it has no other place for it

    async def guarded(method: str, params: Any, is_notification: bool) -> Any:
        try:
            return await handle(method, params, is_notification)
        except RequestError:
            if not is_notification:
                raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if not is_notification:
                raise RequestError.invalid_params() from error
        return None

    connection._handler = guarded  # noqa: SLF001


def _name(session_id: str) -> str:
    """Raises ValueError if it can't be kept."""
    if len(session_id) > MOST_NAME or storable(session_id) != session_id:
        raise ValueError(session_id[:MOST_NAME])
    return session_id


def _missing(profile: Profile) -> Broke:
    text = (
        f"{profile.name} isn't installed on this worker's machine. Install it there: "
        f"orchestrator agent install {profile.program}"
    )
    return Broke("agent-program-missing", text, ErrorClass.DEPENDENCY)


def _against_protocol(name: str) -> Broke:
    text = f"{name} answered otherwise than its protocol says."
    return Broke("agent-request-failed", text, ErrorClass.AGENT)


def _of_request(name: str, error: RequestError) -> Broke:
    """An error that the agent answered with, where the gateway's responses don't say more."""
    if error.code == AUTH_REQUIRED or "authentication required" in str(error).lower():
        return Broke("model-unauthorized", f"{name}: {error}", ErrorClass.AUTH, retryable=False)
    data = beginning(json.dumps(error.data, default=str), 500) if error.data else ""
    return Broke("agent-request-failed", f"{name}: {error} {data}".strip(), ErrorClass.AGENT)


def _of_reason(name: str, said: Said) -> Broke | None:
    match said.stop_reason:
        case "refusal":
            text = f"{name}'s model refused to answer."
            return Broke("model-refused", text, ErrorClass.CONTENT_REFUSED, retryable=False)
        case "max_tokens":
            return Broke("agent-cut-off", f"{name}'s answer was cut off.", ErrorClass.AGENT)
        case "max_turn_requests":
            text = f"{name} stopped at its own limit of turns."
            return Broke("limit-turns", text, ErrorClass.LIMIT, retryable=False)
        case "cancelled":
            return Broke("agent-cancelled-itself", f"{name} cancelled its own turn.", ErrorClass.AGENT)
        case _:
            return None
