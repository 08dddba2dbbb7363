"""coder/agentapi: an agent in somebody's terminal, spoken to by HTTP. Of a lower class, and only on request.

It is not ours: it is neither started nor sandboxed nor ended by us, it spends on its own keys, and what it
says is read from a screen. It is told which folder to work in, and must be able to reach it, so it has to run
on the worker's machine, as somebody who may write there. What it changes there is the result.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from queue import Empty, Full, Queue
from typing import Any, Final
from urllib.parse import urlsplit

from orchestrator.agents import prompts
from orchestrator.agents.external import SUMMARY
from orchestrator.agents.oversight import CHECKPOINT_SECONDS, PATIENT_SECONDS
from orchestrator.agents.ports import Sessions
from orchestrator.core.assignment import Assignment, Link
from orchestrator.core.recovery import ErrorClass, of_os_error
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, Done, StopReason, Verdict, Waits, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine.ports import LeaseLost
from orchestrator.engine.untrusted import cut, storable
from orchestrator.workspaces.workspace import Workspace

CONNECT_SECONDS: Final = 10.0
TYPING_SECONDS: Final = 60.0
"""How long the server may take until the agent begins with a message."""
LOOK_SECONDS: Final = 0.3
SILENT_SECONDS: Final = 20.0
"""After a message was taken and nothing was said of it, and the agent isn't at work."""
BUSY: Final = timedelta(seconds=30)
_MOST_LINE: Final = 4 * 1024**2
"""Bytes of one event: it holds a whole message, which is told anew whenever it has grown."""
_MOST_ANSWER: Final = 16 * 1024**2
"""Bytes of the whole conversation."""
_MOST_WAITING: Final = 8
"""Events that are read and not yet taken."""
_MOST_ID: Final = 100
_LEFT_SECONDS: Final = 2.0
_INTERRUPT: Final = "\x03"
_INTERRUPT_SECONDS: Final = 3.0
_RESTING: Final = "stable"


class Unreachable(Exception):
    """The server isn't there, or didn't answer as its description says."""

    def __init__(self, message: str, error: ErrorClass = ErrorClass.NETWORK, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.error = error
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """One agentapi process: one agent, one conversation. `key` goes as a bearer token."""

    url: str
    key: str | None = None

    def status(self) -> str:
        """running or stable."""
        return str(self._json("GET", "/status").get("status", ""))

    def messages(self) -> list[dict[str, Any]]:
        """id, role, content, time; in order. The last one of the agent grows while it works."""
        found = self._json("GET", "/messages").get("messages")
        return [dict(one) for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []

    def send(self, content: str, *, raw: bool = False) -> None:
        """Returns when the agent has begun. Raises `Unreachable`, whose status is 500 while it is busy."""
        self._json("POST", "/message", {"content": content, "type": "raw" if raw else "user"})

    @contextmanager
    def events(self) -> Iterator[Queue[tuple[str, Mapping[str, Any]] | None]]:
        """What happens, beginning with all that has; None when the stream has ended. Where few are taken, few
        are read."""
        events: Queue[tuple[str, Mapping[str, Any]] | None] = Queue(_MOST_WAITING)
        connection, response, way = self._ask("GET", "/events", None, None)
        closing = threading.Event()
        following = threading.Thread(target=_follow, args=(response, events, closing), daemon=True)
        following.start()
        try:
            yield events
        finally:
            closing.set()
            with contextlib.suppress(OSError):
                way.shutdown(socket.SHUT_RDWR)  # wakes who reads; closing it under a reader would not
            following.join(_LEFT_SECONDS)
            connection.close()

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        connection, response, _ = self._ask(method, path, body, TYPING_SECONDS)
        try:
            found = json.loads(response.read(_MOST_ANSWER))
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise Unreachable(f"{path} gave no JSON ({type(error).__name__})") from error
        finally:
            connection.close()
        if not isinstance(found, dict):
            raise Unreachable(f"{path} gave something else than an object")
        return found

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, socket.socket]:
        parts = urlsplit(self.url)
        scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = scheme(parts.hostname or "localhost", parts.port, timeout=CONNECT_SECONDS)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        text = None if body is None else json.dumps(body)
        try:
            connection.connect()
            way: socket.socket = connection.sock  # the connection forgets it where the server will close it
            way.settimeout(seconds)
            kind = {"Content-Type": "application/json"} if text else {}
            connection.request(method, f"{parts.path.rstrip('/')}{path}", text, {**headers, **kind})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(f"no answer from {parts.netloc} ({type(error).__name__})") from error
        if response.status != http.HTTPStatus.OK:
            said = response.read(2000).decode("utf-8", "replace")
            connection.close()
            denied = response.status in {401, 403}
            kind_of = ErrorClass.AUTH if denied else ErrorClass.NETWORK
            raise Unreachable(f"{path} answered {response.status}: {said[:300]}", kind_of, response.status)
        return connection, response, way


def _follow(
    response: http.client.HTTPResponse,
    into: Queue[tuple[str, Mapping[str, Any]] | None],
    closing: threading.Event,
) -> None:
    def put(event: tuple[str, Mapping[str, Any]] | None) -> None:
        while not closing.is_set():
            with contextlib.suppress(Full):
                into.put(event, timeout=LOOK_SECONDS)
                return

    try:
        for event in _events(response):
            put(event)
            if closing.is_set():
                break
    except (OSError, ValueError, AttributeError, RecursionError, http.client.HTTPException):
        pass  # closed under us, broken off, or no stream of events
    put(None)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Raises ValueError for one that is too long, or no JSON."""
    name, data, size = "message", list[str](), 0
    while line := response.readline(_MOST_LINE):
        size += len(line)
        if size > _MOST_LINE:
            raise ValueError("an event is too long")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        field, _, value = text.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data.append(value.strip())
        elif not text:
            if data:
                found = json.loads("".join(data))
                yield name, found if isinstance(found, dict) else {}
            name, data, size = "message", [], 0


@dataclass(frozen=True, slots=True)
class AgentApi:
    """The agent behind a server."""

    url: str
    key: str | None
    open_sessions: Callable[[Assignment], Sessions]
    open_workspace: Callable[[Assignment], AbstractContextManager[Workspace]]

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        try:
            with self.open_workspace(assignment) as workspace:
                server = Server(self.url, self.key)
                sessions = self.open_sessions(assignment)
                return _Work(server, sessions, workspace, assignment, link).carry_on()
        except LeaseLost:
            return Yielded(StopReason.LEASE_LOST)
        except Unreachable as away:
            return Broke("agentapi-unreachable", f"agentapi: {away.message}", away.error)
        except WorkspaceFault as fault:
            return Broke(fault.code, fault.message, fault.error)
        except OSError as error:
            text = f"the workspace failed: {error.strerror or error}"
            return Broke("workspace-io", text, of_os_error(error))


class _Work:
    """One claim's share of the conversation."""

    def __init__(
        self, server: Server, sessions: Sessions, workspace: Workspace, assignment: Assignment, link: Link
    ) -> None:
        self._server = server
        self._sessions = sessions
        self._workspace = workspace
        self._assignment = assignment
        self._link = link
        self._session = sessions.load().session
        self._mark = f"[step {assignment.step_id}, prompt {{}}]"
        self._begun = time.monotonic()
        self._kept_at = self._begun
        self._asked_at: float | None = None
        self._told: tuple[str, str] = ("", "")
        """The message that is being written, by its id, as far as it was told."""

    def carry_on(self) -> Verdict:
        """Each prompt carries a mark, by which a claim after a killed worker sees whether it was sent."""
        was_sent = self._is_known(self._mark.format(self._session.prompts + 1))
        if was_sent and not self._interrupted():
            return _BUSY
        if was_sent:
            self._count()
        text = self._resumed() if was_sent else self._opening()
        while True:
            mark = self._mark.format(self._session.prompts + 1)
            if (verdict := self._sent(text, mark)) is not None:
                return verdict
            ended = self._followed(mark)
            self._checkpoint()
            if not isinstance(ended, str):
                return ended
            self._count()
            if heard := self._sessions.hear(self._session.prompts + 1):
                text = prompts.steered([one.text for one in heard])
                continue
            if self._workspace.is_changed or prompts.says_no_change(ended):
                summary = cut(storable(ended.strip()), SUMMARY) or "Done by agentapi."
                return Done(summary, {"agent": "agentapi"})
            if self._session.nudged:
                why = "the agent says that it is done, but changed no file in the folder that it was given."
                return Broke("agent-changed-nothing", why, ErrorClass.AGENT)
            self._save(nudged=True)
            text = prompts.UNCHANGED

    def _save(self, **changes: Any) -> None:
        elapsed, self._begun = self._elapsed, time.monotonic()
        self._session = replace(self._session, elapsed=elapsed, **changes)
        self._sessions.save(self._session)

    @property
    def _elapsed(self) -> timedelta:
        """Time at work on the step, all claims together."""
        return self._session.elapsed + timedelta(seconds=time.monotonic() - self._begun)

    def _count(self) -> None:
        self._save(prompts=self._session.prompts + 1)

    def _checkpoint(self) -> None:
        """From here the step goes on, whoever dies."""
        self._kept_at = time.monotonic()
        if (commit := self._workspace.checkpoint("agentapi")) is not None:
            self._sessions.keep_checkpoint(self._session.prompts + 1, commit)

    def _checkpoint_amid_work(self) -> None:
        """The agent writes while we read: a file that has just gone is no reason to end its work."""
        try:
            self._checkpoint()
        except WorkspaceFault as fault:
            self._link.log("system", f"A checkpoint was missed: {fault.message}\n")

    # --- what it is told ------------------------------------------------------------------------------------

    def _opening(self) -> str:
        heard = [one.text for one in self._sessions.hear(self._session.prompts + 1)]
        begun = prompts.first(self._assignment, heard, again=self._session.session_id is not None)
        return f"{self._folder}\n\n{begun}"

    def _resumed(self) -> str:
        """Its folder is again as it was at the last checkpoint."""
        heard = [one.text for one in self._sessions.hear(self._session.prompts + 1)]
        return f"{self._folder}\n\n{prompts.resumed(heard)}"

    @property
    def _folder(self) -> str:
        return f"Your working folder is {self._workspace.tree}: go there, and change files there alone."

    def _is_known(self, mark: str) -> bool:
        sent = (one for one in self._server.messages() if one.get("role") == "user")
        return any(_dense(mark) in _joined(one) for one in sent)

    def _sent(self, text: str, mark: str) -> Verdict | None:
        """None: the agent has it."""
        if self._server.status() != _RESTING:
            return _BUSY
        self._save(session_id="agentapi")
        try:
            self._server.send(f"{text}\n\n{mark}")
        except Unreachable as away:
            if away.status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
                return Waits(WaitingOn.AGENT, {"missing": {"agentapi": [away.message]}}, BUSY)
            raise
        return None

    # --- what becomes of it ---------------------------------------------------------------------------------

    def _followed(self, mark: str) -> str | Verdict:
        """Until the agent has come to rest; its last message, or why it can't go on. What has happened is
        believed in the order of the stream: an error comes before the rest that follows it."""
        sent_at, status = time.monotonic(), ""
        with self._server.events() as events:
            while True:
                try:
                    event = events.get(timeout=LOOK_SECONDS)
                except Empty:
                    event = _NOTHING
                if event is None:
                    return Broke("agentapi-unreachable", "agentapi: its events broke off", ErrorClass.NETWORK)
                if (broke := self._heard(*event)) is not None:
                    return broke
                status = str(event[1].get("status", "")) if event[0] == "status_change" else status
                if (stopped := self._stopped()) is not None:
                    return stopped
                if time.monotonic() - self._kept_at > CHECKPOINT_SECONDS:
                    self._checkpoint_amid_work()
                if status != _RESTING or not events.empty():
                    continue
                if (said := self._answer(mark)) is not None:
                    return said
                if time.monotonic() - sent_at > SILENT_SECONDS:
                    why = "the agent took the message and did nothing."
                    return Broke("agent-silent", why, ErrorClass.AGENT)

    def _heard(self, name: str, data: Mapping[str, Any]) -> Verdict | None:
        if name == "message_update" and data.get("role") == "agent":
            text, at = str(data.get("message", "")), str(data.get("id", ""))[:_MOST_ID]
            before = self._told[1] if self._told[0] == at else ""
            # It is rewritten in place while the agent works: a screen, not a log.
            if text.startswith(before):
                self._link.note("text", {"text": storable(text[len(before) :])})
            self._told = (at, text)
        elif name == "agent_error" and data.get("level") == "error":
            why = f"the agent's server says: {storable(str(data.get('message', '')))[:500]}"
            return Broke("agent-failed", why, ErrorClass.AGENT)
        return None

    def _answer(self, mark: str) -> str | None:
        """What the agent said after the marked message; None: nothing yet."""
        found = self._server.messages()
        asked = [
            place
            for place, one in enumerate(found)
            if one.get("role") == "user" and _dense(mark) in _joined(one)
        ]
        if not asked:
            return None
        said = [str(one.get("content", "")) for one in found[asked[-1] + 1 :] if one.get("role") == "agent"]
        if not said:
            return None
        self._link.log("agent", storable(said[-1]) + "\n")
        return said[-1]

    def _stopped(self) -> Verdict | None:
        """A soft stop waits for the agent to rest, but not for ever: it must not go on when the claim is
        over, for its folder is set back then."""
        stop, worked = self._link.stop, self._elapsed
        if worked >= self._assignment.limits.wall_time:
            self._interrupted()
            why = f"at work for {worked.total_seconds():.0f} seconds"
            return Broke("limit-wall-time", why, ErrorClass.LIMIT, retryable=False)
        if stop.reason is None:
            return None
        self._asked_at = self._asked_at or time.monotonic()
        if not stop.is_hard() and time.monotonic() - self._asked_at < PATIENT_SECONDS:
            return None
        self._interrupted()
        self._save()
        return Yielded(stop.reason)

    def _interrupted(self) -> bool:
        """There is no way to cancel but the key that people press; True when the agent rests."""
        try:
            if self._server.status() == _RESTING:
                return True
            self._server.send(_INTERRUPT, raw=True)
            until = time.monotonic() + _INTERRUPT_SECONDS
            while time.monotonic() < until and self._server.status() != _RESTING:
                time.sleep(LOOK_SECONDS)
            return self._server.status() == _RESTING
        except Unreachable as away:
            self._link.log("system", f"The agent could not be interrupted: {away.message}\n")
            return False


_BUSY: Final = Waits(WaitingOn.AGENT, {"missing": {"agentapi": ["it is busy with something else"]}}, BUSY)
_NOTHING: Final[tuple[str, Mapping[str, Any]]] = ("", {})


def _joined(message: Mapping[str, Any]) -> str:
    """As a terminal shows it, a line is broken anywhere."""
    return _dense(str(message.get("content", "")))


def _dense(text: str) -> str:
    return "".join(text.split())
