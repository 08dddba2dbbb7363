"""`execute_task.delay(...)`: the producers' door. The Celery id of the call is the task's id.

The row is written before the message is sent, and the message carries the signed id alone. No worker slot is
held while the work is done: the entry keeps its own request on the row and ends with `Ignore`; when the
workflow ends, that request is sent again, and its delivery hands the end to Celery: result, chain and chord
go on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, NoReturn

import structlog
from celery import Task, states
from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult
from kombu.exceptions import OperationalError as BrokerError
from kombu.utils import json as kombu_json
from redis.exceptions import RedisError

from orchestrator.bootstrap import Wiring
from orchestrator.commands import request, submit
from orchestrator.commands.submit import Submitted
from orchestrator.core.errors import Denied, Refused
from orchestrator.core.states import TERMINAL, Status
from orchestrator.db import entries
from orchestrator.db.connect import Connection, SQLAlchemyError
from orchestrator.db.sql import TaskRef
from orchestrator.queues.messages import Reference, digest, finalize_label, opened, sealed
from orchestrator.queues.names import TaskName
from orchestrator.queues.results import show
from orchestrator.tasks.bare import Bare
from orchestrator.tasks.patience import patiently
from orchestrator.tasks.publish import perform

log: Final = structlog.get_logger(__name__)
DELIVERY_LEASE: Final = timedelta(seconds=30)
_BODY: Final = "body"
_REQUEST: Final = "request"
_PREVIOUS: Final = "previous"
_BROKER_AWAY: Final = (BrokerError, RedisError, OSError)
_KEPT_OPTIONS: Final = frozenset(
    [
        "chain",
        "chord",
        "group_id",
        "group_index",
        "link",
        "link_error",
        "root_id",
        "parent_id",
        "shadow",
        "queue",
        "priority",
        "headers",
        "replaced_task_nesting",
        "stamped_headers",
        "reply_to",
    ]
)
"""Of `apply_async`'s options those that are JSON and belong to the message however often it is sent."""


class TaskFailed(Bare):
    """What `.get()` raises for a task that failed: `args` are the code and a sentence."""

    def __init__(self, code: str, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class TaskCancelled(Exception):
    """What `.get()` raises for a task that was cancelled: `args` is the reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


_SIX: Final = {
    states.PENDING: "queued",
    states.RECEIVED: "queued",
    states.STARTED: "running",
    states.RETRY: "queued",
    states.SUCCESS: "completed",
    states.FAILURE: "failed",
    states.REVOKED: "cancelled",
}


class TaskResult(AsyncResult[Any]):
    """A call's result: `state` is `queued`, `running` or `pending_input` while the task lives and Celery's
    own at the end; `status` is one of the six public names throughout.
    """

    @property
    def status(self) -> str:  # type: ignore[override]  # wider than Celery's own words
        return _SIX.get(self.state, self.state.lower())


class ExecuteTask(Task[Any, Any]):
    """`apply_async` writes the task's row, then sends its id; Celery calls it for canvas members, too.

    Positional arguments are the request (a mapping, or the description alone), after the previous task's
    result where the call is a later member of a chain or the body of a chord. Raises core.errors.Refused for
    a request that can't be accepted.
    """

    name = str(TaskName.EXECUTE_TASK)
    typing = False
    track_started = False
    resultrepr_maxsize = 1
    """Flower and logs show nothing of a result: summaries are payload."""
    wiring: Wiring

    def AsyncResult(self, task_id: str, **kwargs: Any) -> TaskResult:  # noqa: N802 - Celery's name
        return TaskResult(task_id, app=self.app, **kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Every message of this task passes here: its arguments become an id, its queue and label are set."""
        del producer  # perhaps the caller's own app's, which doesn't know our queues
        task_id = task_id or _new_id()
        label = {**finalize_label(task_id).options, "shadow": shadow or "task"}
        options.update({**label, "link": link, "link_error": link_error})
        arguments = dict(kwargs or {})
        if "signature" not in arguments:
            arguments = self._accepted(tuple(args or ()), arguments, task_id, options)
        if _BODY in arguments:
            return self._send(arguments, task_id, options)
        try:
            return self._send(arguments, task_id, options)
        except _BROKER_AWAY as error:
            # The row is written, and its signature with it: the sweep sends what has to be sent.
            log.warning("publish_failed", task=task_id, error=type(error).__name__)
            return self.AsyncResult(task_id)

    def _send(self, arguments: dict[str, Any], task_id: str, options: Mapping[str, Any]) -> TaskResult:
        app = self.wiring.app
        options = {**options, "ignore_result": False}
        sent = app.send_task(self.name, (), arguments, task_id=task_id, **options)
        return TaskResult(sent.id, app=app, parent=getattr(sent, "parent", None))

    def _accepted(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], task_id: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """The message's arguments; `options` are completed by where it goes."""
        body, previous = _body(args, kwargs)
        wanted = self._read(body, previous, task_id)
        options.update(self.wiring.topology.destination(wanted.priority).options)
        reference = Reference(self.name, self.wiring.tenant_id, task_id)
        if self.wiring.has_database:
            arguments: dict[str, Any] = sealed(reference, self.wiring.secret)
            self._submit(wanted, task_id, previous, self._announced(arguments, task_id, options))
            return arguments
        # As safe as the broker: a worker writes the row when the message arrives. One text, since what is
        # signed must be what is read.
        travels = {_REQUEST: wanted.model_dump(mode="json", exclude_unset=True), _PREVIOUS: previous}
        text = str(kombu_json.dumps(travels))
        return {**sealed(replace(reference, digest=digest(text)), self.wiring.secret), _BODY: text}

    def _read(self, body: Any, previous: Any, task_id: str) -> request.TaskRequest:
        """The request, if a task with this id can come of it. Raises Refused."""
        request.check_id(task_id)
        request.check_body(body, self.wiring.settings.max_body_bytes)
        request.check_previous(previous, self.wiring.settings.max_body_bytes)
        wanted = request.parse(body)
        if wanted.id not in {None, task_id}:
            raise Refused(
                "id-is-the-calls",
                f"The task's id is the id of the call, {task_id}, not {wanted.id}.",
                "Use apply_async(…, task_id=…) to choose it.",
            )
        return wanted

    def _announced(
        self, arguments: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The message as a signature, before it is sent: with the caller's chain, chord and links."""
        given = {key: value for key, value in options.items() if value is not None and key in _KEPT_OPTIONS}
        stored: dict[str, Any] = json.loads(
            kombu_json.dumps(
                {
                    "task": self.name,
                    "args": [],
                    "kwargs": arguments,
                    "options": {"root_id": task_id, **given, "task_id": task_id},
                    "subtask_type": None,
                    "immutable": True,
                }
            )
        )
        return stored

    def _submit(
        self, wanted: request.TaskRequest, task_id: str, previous: Any, signature: Mapping[str, Any]
    ) -> Submitted:
        wiring = self.wiring

        def write(connection: Connection) -> Submitted:
            submitted = submit.submit(
                connection,
                wanted,
                policy=wiring.policy,
                tenant_id=wiring.tenant_id,
                task_id=task_id,
                created_by="celery",
                now=wiring.clock(),
                previous=previous,
            )
            entries.keep(connection, TaskRef(wiring.tenant_id, task_id), signature)
            return submitted

        return perform(wiring, write)

    def run(self, **arguments: Any) -> dict[str, Any]:
        """One delivery: keeps the request while the task lives, hands its end to Celery once."""
        body = arguments.pop(_BODY, None)
        try:
            reference = opened(self.name, arguments, self.wiring.secret, body)
        except Denied as forged:
            log.error("message_refused", celery_id=self.request.id, reason=forged.message)  # noqa: TRY400
            raise Ignore from None
        task, signature = TaskRef(reference.tenant_id, reference.task_id), self._signature()

        def arrive() -> entries.Entry | None:
            if body is not None:
                travelled = kombu_json.loads(body)
                asked, previous = travelled[_REQUEST], travelled[_PREVIOUS]
                self._submit(self._read(asked, previous, task.task_id), task.task_id, previous, signature)
            with self.wiring.engine.begin() as connection:
                return entries.arrive(connection, task, signature, DELIVERY_LEASE)

        try:
            entry = patiently(arrive, self.wiring.settings.lease)
        except SQLAlchemyError as error:
            # The message is the only one that holds the caller's canvas: it goes back to the broker.
            log.warning("entry_not_kept", task=task.task_id, error=type(error).__name__)
            raise Reject(str(type(error).__name__), requeue=True) from None
        if entry is None:
            log.error("task_unknown", task=task.task_id)
            raise Ignore
        if not entry.to_deliver:
            self._mirror(task, entry.status)
        return self._deliver(task, entry)

    def _signature(self) -> dict[str, Any]:
        current = self.request
        kwargs = {key: value for key, value in (current.kwargs or {}).items() if key != _BODY}
        return {**dict(self.signature_from_request(current, (), kwargs)), "args": [], "kwargs": kwargs}

    def _mirror(self, task: TaskRef, status: Status) -> NoReturn:
        if status not in TERMINAL:
            show(self.wiring.app, task.task_id, status.value)
            self.send_event(f"task-{status.value}")
        raise Ignore

    def _deliver(self, task: TaskRef, entry: entries.Entry) -> dict[str, Any]:
        outcome = entry.outcome or {}
        match entry.status:
            case Status.COMPLETED:
                return dict(entry.result or {})
            case Status.CANCELLED:
                reason = str(outcome.get("reason", "cancelled"))
                self.backend.store_result(
                    task.task_id, TaskCancelled(reason), states.REVOKED, request=self.request
                )
                self.backend.mark_as_revoked(task.task_id, reason, request=self.request, store_result=False)
                self.send_event("task-retried")  # to Flower the states of ours are later ones than REVOKED
                self.send_event("task-revoked", terminated=False, signum=None, expired=False)
                self._delivered(task)
                raise Ignore
            case _:
                # Flower shows an exception as it is: the agent's own words stay on the row.
                hint = f"see: orchestrator task status {task.task_id}"
                raise TaskFailed(str(outcome.get("reason", "failed")), hint).bare() from None

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        del retval, args
        self._delivered(TaskRef(kwargs["tenant_id"], task_id))

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        del args, einfo
        if isinstance(exc, TaskFailed):
            self._delivered(TaskRef(kwargs["tenant_id"], task_id))

    def _delivered(self, task: TaskRef) -> None:
        try:
            with self.wiring.engine.begin() as connection:
                entries.delivered(connection, task)
        except SQLAlchemyError as error:
            # The lease ends and the sweep sends it again: the caller may then hear the end twice.
            log.warning("delivery_not_noted", task=task.task_id, error=type(error).__name__)


def _new_id() -> str:
    return str(uuid.uuid4())


def _body(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The request, and what the task before it in the caller's canvas returned."""
    if len(args) > 2:  # noqa: PLR2004 - the previous result and the request
        raise Refused("request-invalid", f"execute_task takes one request, not {len(args)} arguments.", "")
    if kwargs and args and not isinstance(args[-1], str | Mapping):
        return dict(kwargs), args[0]
    if args:
        return args[-1], args[0] if len(args) == 2 else None  # noqa: PLR2004 - as above
    return dict(kwargs), None
