"""What each error code means and what to do, at `/problems/<code>` and by `orchestrator explain <code>`.

No web framework is imported here: the terminal reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Explanation:
    """`title` is the same for every error of the code; `cause` and `fix` are for people."""

    title: str
    cause: str
    fix: str


_TEXTS: Final = """
request-invalid | The request is not valid
    A field is missing, unknown, of the wrong kind or too long. `errors` names each one by a JSON pointer.
    Correct those fields. Fields of your own begin with x_.
request-malformed | The body is not JSON
    The body could not be read as JSON, or holds what JSON or Unicode don't allow.
    Send a JSON object, in UTF-8.
mode-unavailable | Not available in this version
    The request asks for something that is understood but not built into this version.
    Leave the named field out.
body-too-large | The body is too large
    The request's body is longer than this server accepts.
    Shorten it. The limit is ORCHESTRATOR_MAX_BODY_BYTES.
media-type-unsupported | Not a media type that is understood
    A body must be sent as application/json.
    Send the header Content-Type: application/json.
method-not-allowed | That path doesn't take this method
    The path exists, but not with this method. The header Allow names those that it takes.
    See /openapi.json.
not-found | There is nothing at this path
    No route of this server has this path.
    See /openapi.json.
host-not-allowed | This name of the server is not allowed
    The server listens on loopback only and was called by another name, as a hostile web page might.
    Call it as 127.0.0.1 or localhost.
key-missing | No API key
    Every route but health needs an API key.
    Send Authorization: Bearer <key>. `orchestrator up` makes one and tells your own client.
key-invalid | The API key is not valid
    It is mistyped, unknown, expired or revoked.
    Set ORCHESTRATOR_API_KEY to a key of this installation.
key-weak | The configured API key is too weak
    ORCHESTRATOR_API_KEY is mistyped or too short to be safe.
    Let `orchestrator up` make one, or use 32 random characters or more.
scope-missing | The API key may not do this
    The key is valid, but its scope doesn't cover this route.
    Use a key with the scope that the error names.
task-unknown | There is no such task
    No task with this id is visible with this key.
    List those that there are: orchestrator task list
task-exists | The task exists already
    The id is taken by a task with another request.
    Choose another id, or leave it out.
task-ended | The task has ended
    A completed, failed or cancelled task can't be paused, resumed or cancelled.
    Run it again: orchestrator task retry <id>
not-ended | The task has not ended
    Only a task that has ended can be retried.
    Cancel it first: orchestrator task cancel <id>
already-paused | The task is paused already
    Pausing it again changes nothing.
    Let it go on: orchestrator task resume <id>
not-paused | The task is not paused
    Only a paused task can be resumed.
    See it: orchestrator task status <id>
question-unknown | There is no such question
    No question has this id, or the task has none that is open.
    See what waits for an answer: orchestrator task list --waiting
question-ambiguous | The task has several open questions
    An answer that names the task alone would be for any of them.
    Name the question itself.
question-withdrawn | The question needs no answer any more
    The step that asked has ended.
    Nothing is to be done.
already-answered | The question was answered already
    Only the first answer counts; the error tells it.
    See how the task goes on: orchestrator task watch <id>
answer-invalid | The answer can't be taken
    It is empty, too long, or names a choice that there isn't.
    Send {"answer": {"text": "…"}} or {"answer": {"choice": 1}}.
range-invalid | That range is not in the file
    The file is shorter than the range that was asked for, or the range is malformed.
    Ask for another range, or for the whole file.
artifact-unknown | There is no such artifact
    The task has no artifact of this id, or its file was removed.
    List them: GET /api/v1/tasks/<id>/artifacts
artifact-store-unavailable | The artifact store can't be reached
    The folder or bucket with the stored files doesn't answer, or is full.
    Check ORCHESTRATOR_ARTIFACT_URL and the room there.
diff-unavailable | There is no diff yet
    The task hasn't committed anything.
    Wait for its first step: orchestrator task watch <id>
plan-cycle | The plan's steps wait for one another
    Following `needs` leads back to where it began; the error names the circle.
    Take one of its needs out.
plan-invalid | The plan is not valid
    Two steps share an id, or a step needs one that there isn't, or itself.
    Correct the named steps.
plan-empty | The plan has no steps
    `steps` is an empty list.
    Give one step at least, or leave `steps` out.
plan-too-large | The plan has too many steps
    More steps than a plan may have.
    Split the work into several tasks.
repository-forbidden | The repository's address is not allowed
    Only https, ssh and, where it is allowed, local paths may be used, without credentials in the address.
    Use an address of those kinds; credentials are configured where the workers run.
repository-unreachable | The repository can't be reached
    The worker could not fetch it: no such repository, no right to read it, or no network.
    Try `git ls-remote <url>` where the worker runs, then: orchestrator task retry <id>
agent-unknown | There is no such kind of agent
    This version doesn't know the agent type that the request names.
    Leave it out to use the default.
agent-not-found | There is no such agent
    No agent that is there has this id or name.
    List them: orchestrator agent list
recording-mismatch | The request departs from the recording
    A recorded model answers only what was recorded, and never invents an answer.
    Use the demo's own plan and repository, or a live model: set ANTHROPIC_API_KEY.
recording-unknown | There is no such recording
    The replay agent has no recording for this step.
    Use the demo's own plan, or a live model: set ANTHROPIC_API_KEY.
poison | The worker was lost in every attempt
    Each worker that took the step died or lost its lease, as often as attempts are allowed.
    See the worker's log, then: orchestrator task retry <id>
idempotency-key-invalid | The Idempotency-Key can't be used
    It must be 1 to 255 visible ASCII characters.
    Use a random one, such as a UUID.
idempotency-key-reused | The Idempotency-Key came with another request
    The same key was sent before with another method, path or body.
    Use a new key for each request.
idempotency-in-progress | The same request is being worked on
    A request with this Idempotency-Key hasn't been answered yet.
    Send it again in a moment.
cursor-invalid | The cursor is not one of ours
    It was changed on the way, or is of another installation.
    Start without a cursor.
cursor-mismatch | The cursor belongs to another filter
    A cursor can only go on with the list that it came from.
    Start without a cursor.
filter-invalid | The filter is not valid
    A value isn't one that this field can have.
    The error lists those that it can have.
database-unavailable | The database can't be reached
    Postgres is away, starting or shutting down. Nothing was written in part.
    Try again in a moment. orchestrator ps shows whether it runs.
database-not-configured | No database is configured
    ORCHESTRATOR_DATABASE_URL is not set.
    Set it, or start everything on this machine: orchestrator up
message-secret-missing | No message secret is configured
    Messages between the processes are signed; they need a secret in common.
    Set ORCHESTRATOR_MESSAGE_SECRET to the same value for all processes.
internal-error | Something unexpected went wrong
    It is our fault, and the server's log has the details under the request's id.
    Try again; if it comes back, report it with the request's id.
api-unreachable | The API can't be reached
    Nothing answers at that address.
    Start it: orchestrator up   Another address: --api-url or ORCHESTRATOR_API_URL
already-running | A stack already runs for this folder
    One folder has one stack.
    See it: orchestrator ps   Stop it: orchestrator down   A second one: --data DIR
not-running | Nothing runs for this folder
    No stack was started for it, or it has ended.
    Start it: orchestrator up
"""


def _read(texts: str) -> dict[str, Explanation]:
    found: dict[str, Explanation] = {}
    lines = texts.strip().splitlines()
    for head, cause, fix in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        code, _, title = head.partition(" | ")
        found[code] = Explanation(title, cause.strip(), fix.strip())
    return found


EXPLANATIONS: Final[Mapping[str, Explanation]] = MappingProxyType(_read(_TEXTS))
