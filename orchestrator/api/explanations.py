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
    A completed, failed or cancelled task can't be paused, resumed, cancelled or told anything.
    Run it again: orchestrator task retry <id>
messages-unheard | Too many messages wait to be heard
    A task's agent hears messages before its next turn; those of this task have not been taken up yet.
    Look what it does, or waits for, and say the rest later: orchestrator task status <id>
not-ended | The task has not ended
    Only a task that has ended can be retried.
    Cancel it first: orchestrator task cancel <id>
deadline-passed | The task's deadline has passed
    A retry keeps the task's deadline, so it would end at once.
    Create a new task with a later deadline, or without one.
deadline-exceeded | The task's deadline passed before it was done
    After its deadline a task may not go on: what waits fails at once, what runs is stopped and fails.
    Create a new task with a later deadline, or without one.
duration-exceeded | The task took longer than it may
    More time than its budget's max_duration passed since its first step was claimed; waiting counts.
    Run it again: orchestrator task retry <id>; or create it with a longer max_duration.
already-paused | The task is paused already
    Pausing it again changes nothing.
    Let it go on: orchestrator task resume <id>
not-paused | There is nothing to resume
    Only a paused task, or one with an escalated step, can be resumed.
    See what it waits for: orchestrator task status <id>
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
    It is empty, too long, or names a choice that there isn't; or it is no answer to a question of that kind.
    Send {"answer": {"text": "…"}} or {"choice": 1}; leave takes Approve or Deny, a budget an amount or Stop.
question-unanswered | Nobody answered in time
    The task was created with on_question_timeout, which says that a question without an answer fails.
    Run it again, with somebody there or with a longer time: orchestrator task retry <id>
budget-refused | The budget was not raised
    The task's budget was used up, and the person who was asked said to stop.
    Create a task with a higher budget, or retry this one, which asks again: orchestrator task retry <id>
range-invalid | That range is not in the file
    The file is shorter than the range that was asked for, or the range is malformed.
    Ask for another range, or for the whole file.
artifact-unknown | There is no such artifact
    The task has no artifact of this id, or its file was removed.
    List them: GET /api/v1/tasks/<id>/artifacts
artifact-store-unavailable | The artifact store can't be reached
    The folder or bucket with the stored files doesn't answer, or is full.
    Check ORCHESTRATOR_ARTIFACT_URL and the room there.
disk-full | A disk is full
    A file could not be written on a worker's machine, or less is free than ORCHESTRATOR_DISK_FREE_BYTES says.
    Make room there; the step tries again by itself for more than an hour.
workspace-too-large | The step's files take too much room
    Its commands, or its agent, left more in the workspace or in the agent's HOME than a step may take.
    Raise ORCHESTRATOR_WORKSPACE_MAX_BYTES or …_MAX_FILES, or have it write less: orchestrator task retry <id>
disk-broken | A disk can't be read or written
    The worker's machine reported an input/output error under the step's files.
    Look at that machine's disk, then: orchestrator task retry <id>
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
    Use an address of those kinds; a password is named by `repository.credential`.
repository-unreachable | The repository can't be reached
    The worker could not fetch it: no such repository, no right to read it, or no network.
    Try `git ls-remote <url>` where the worker runs, then: orchestrator task retry <id>
agent-unknown | There is no such kind of agent
    This version doesn't know the agent type that the request names.
    Leave it out, and one is chosen by rule, or take a name from `orchestrator agent types`.
agent-unfit | That agent never does it with that model
    The kind of agent that is named can't use the model that is named, or can't ask the leave that is wanted.
    Leave the agent or the model out, or take an agent that the message names.
agent-program-unknown | There is no such agent program
    Only programs of orchestrator/data/agents.toml can be installed.
    See them: orchestrator agent install --list
agent-program-missing | The agent's program is not installed
    The worker that took the step has lost the program since it said that it has it.
    Install it on that machine: orchestrator agent install NAME
agent-died | The agent's program ended in the middle
    It did not start, or ended before it said that it was done; the step's log holds what it wrote.
    It is tried again by itself. See the log: orchestrator task logs <id>
agent-failed | The agent says that it could not go on
    Its program reported an error of its own; the message tells it.
    It is tried again by itself; read the step's log if it stays so: orchestrator task logs <id>
agent-settings-open | Nobody could promise that the agent asks
    Calls of the step need approval, and the repository has a link where the agent looks for its own settings.
    Make that an ordinary folder, or take the engine or Claude Code, which look for none there.
agent-flooded | The agent's program sent more than is taken from it
    One line, or all of one prompt, was larger than anybody can want, or it asked and read no answers.
    Look at the step's log for what it wrote. The step is tried again.
agent-silent | The agent did nothing
    It took the message and neither said nor did anything.
    Look at its terminal, where it may wait for somebody.
agentapi-unreachable | The agentapi server can't be reached
    Nothing listens at AGENTAPI_URL, it refused the key, or it answered otherwise than its description says.
    Start it, or correct AGENTAPI_URL and AGENTAPI_KEY; it listens on 3284 by itself.
agent-not-external | That kind of agent has no program of its own
    The scenarios are for agents that are programs: claude-code, codex, goose, aider, or one of yours.
    Name one of them, or module:function.
model-server-refused | The model server refused what it was told
    A script or a fault was not as it understands them.
    See: orchestrator model-server --help
agent-install-failed | An agent's program could not be installed
    No package index can be reached, it has no such version, the folder can't be written, or the disk is full.
    Read what the installer said, repair that, and run it again: nothing is left half done.
agent-program-ended | The agent's program ended in the middle of its work
    It crashed, was killed for want of memory, or closed its output.
    Its last words are in the step's log. The step is tried again.
agent-program-silent | The agent's program did not answer
    It did not start, open its session or end its turn in time.
    Look at the step's log for what it wrote on stderr. The step is tried again.
agent-request-failed | The agent's program answered with an error
    What it said is in the message; its protocol has no code for it.
    Look at the step's log. The step is tried again.
agent-model-failed | The agent gave up on its model
    Its requests to the model failed for good, although it ended its turn as if all were well.
    Look at the calls of the step: orchestrator task costs. The step is tried again.
agent-cut-off | The agent's answer was cut off
    Its model stopped at the most that it may write at once.
    The step is tried again. Cut the step into smaller ones if it happens again.
agent-cancelled-itself | The agent cancelled its own turn
    Its program ended the turn as cancelled, and nobody had asked it to.
    Look at the step's log. The step is tried again.
agent-denied | The agent was refused tool calls
    Its own rules refused calls without anybody having been asked, so that its work can't be whole.
    Look at the step's log for which calls those were.
agent-changed-nothing | The agent says that it is done, but changed nothing
    It was told so once, and neither changed a file nor said outright that none has to be changed.
    Say in the task's description what is to be different afterwards. The step is tried again.
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
id-is-the-calls | The id belongs to the call
    A task that is submitted by .delay() has the id of that Celery call, not one of the request.
    Leave `id` out, or choose it with apply_async(…, task_id=…).
invalid-priority | There is no such priority
    The priority isn't one of critical, high, medium and low; `errors` of a request that is not valid says so.
    Use one of these four.
credential-unusable | The credential can't be used
    The worker that took the step has no credential of this name, or has it for another address.
    Set ORCHESTRATOR_CREDENTIALS where the workers run, restart them, then: orchestrator task retry <id>
branch-unknown | The repository has no such branch
    The repository answers, but has no branch or tag of this name.
    See what it has: git ls-remote <url>
agent-type-unknown | The worker doesn't know this kind of agent
    A step asks for a kind of agent that the worker's version doesn't have.
    Run the same version everywhere, or leave the step's `agent` out.
agent-crashed | The agent itself broke
    Something unexpected happened inside the agent; the message names the error.
    See the worker's log. It is tried again a few times by itself.
gateway-missing | The worker knows of no gateway
    Live models are called through the gateway, which alone holds the providers' keys.
    Start `orchestrator gateway` where the keys are, and set ORCHESTRATOR_GATEWAY_URL for the workers.
gateway-unready | The gateway can't reach its database
    Without its rows it can neither check a run's token nor reserve what a call costs, so nothing passes.
    See why Postgres is away: orchestrator doctor. Calls work again by themselves when it is back.
provider-missing | The gateway has no key for that provider
    The model is of a provider that the gateway was given neither a key nor an address for.
    Set ANTHROPIC_API_KEY or OPENAI_API_KEY where the gateway runs, then: orchestrator restart gateway
provider-throttled | The provider asked for a pause
    It answered 429 or 529 with a time to wait, and nothing is sent to that model before it has passed.
    Nothing: the orchestrator tries again then. A higher rate limit at the provider makes it rarer.
provider-unreachable | The provider can't be reached
    The connection to the provider could not be made, or broke before the reply began.
    Check the network of the gateway's machine, and ANTHROPIC_BASE_URL or OPENAI_BASE_URL there.
provider-timeout | The provider did not answer in time
    No reply began within ORCHESTRATOR_GATEWAY_FIRST_BYTE, or it fell silent for ORCHESTRATOR_GATEWAY_STALL.
    Nothing: the orchestrator tries again. Raise these settings for a slow server of your own.
breaker-unknown | There is no such breaker
    Only a provider or a type of agent that has failed before has one.
    See those that there are: orchestrator breakers list
call-unknown | Nothing is kept of that call
    The task made no such call, or what was said in it could not be kept, or was archived.
    See its calls: orchestrator task calls <id>
circuit-open | A provider or a kind of agent is left alone for now
    It failed again and again, so nothing is sent to it until it has had time to recover.
    See why: orchestrator breakers list. Close it at once: orchestrator breakers reset KIND NAME
budget-exhausted | The task's budget is used up
    What the task and its subtasks have spent on models, with the calls in flight, has reached its budget.
    Answer the task's question with a higher budget, or cancel it.
run-limit-reached | The step used up what one step may use
    Its agent reached ORCHESTRATOR_MAX_COST_USD, ORCHESTRATOR_MAX_TOKENS or ORCHESTRATOR_MAX_TURNS.
    Split the step, or raise the limit where the gateway runs.
price-unknown | The model's price is not known
    The task has a budget in dollars, and nobody knows what a call of this model costs.
    Enter it where the gateway runs, or bound the task by tokens or turns instead.
model-not-allowed | The run may not use that model
    A run may use its own model and those in ORCHESTRATOR_RUN_MODELS.
    Name the model with the task (--model), or allow it in ORCHESTRATOR_RUN_MODELS.
run-token-invalid | Not the token of a run that goes on
    Tokens for models are good for one claim of one step. That claim has ended, or the token is another's.
    Nothing: the step's next run gets a token of its own.
too-many-calls | Too many calls in flight
    One run made more calls of models at once than it may.
    Let it make fewer at a time.
provider-tools-off | The provider would do more than answer
    The request names a tool that the provider runs, an address to fetch, or a file that the provider keeps.
    Leave it out, or set ORCHESTRATOR_GATEWAY_PROVIDER_TOOLS=true where the gateway runs.
reply-too-long | The model's reply is too long
    The gateway cuts replies that are longer than any model's: 32 MiB, or 16 MiB in one event.
    Look at what answers at the provider's address.
path-unknown | The gateway doesn't pass that on
    It serves /v1/messages, /v1/messages/count_tokens, /v1/responses, /v1/chat/completions and /v1/models.
    Use one of these.
model-unauthorized | The model's provider refuses the key
    The key is wrong, revoked, or may not use this model.
    Correct ANTHROPIC_API_KEY, restart the workers, then: orchestrator task retry <id>
model-billing | The model's provider wants to be paid
    The account behind the key has no credit.
    Settle it with the provider, then: orchestrator task retry <id>
model-unknown | There is no such model
    The provider doesn't know the model, or the address isn't its API.
    Check `model` and ANTHROPIC_BASE_URL.
model-rate-limited | The model's provider limits requests
    Too many requests or tokens in a short time.
    It is tried again when the provider says so. Fewer slots make it rarer.
model-overloaded | The model's provider is overloaded
    It answered that it has no capacity at the moment.
    It is tried again by itself; after the last attempt: orchestrator task retry <id>
model-server-error | The model's provider failed
    It answered with an internal error.
    It is tried again by itself; after the last attempt: orchestrator task retry <id>
model-conflict | The model's provider saw a conflict
    It answered 409, which a repeated request may resolve.
    It is tried again by itself.
model-timeout | The model did not answer in time
    No reply, or no part of one, came within the time allowed.
    It is tried again by itself; after the last attempt: orchestrator task retry <id>
model-deadline | The model's reply took too long
    The reply had begun but wasn't complete within the time allowed for one turn.
    It is tried again by itself.
model-stalled | The model's reply stood still
    Nothing of the reply came for too long, though the connection was alive; nothing of it was used.
    It is tried again by itself. A model that thinks for long needs a longer ORCHESTRATOR_MODEL_STALL.
model-unreachable | The model can't be reached
    Nothing answers at the provider's address.
    Check the network and ANTHROPIC_BASE_URL where the workers run.
model-stream-dropped | The model's reply broke off
    The connection ended in the middle of a reply; nothing of it was used.
    It is tried again by itself.
model-stream-truncated | The model's reply is incomplete
    The stream ended without its last part; nothing of it was used.
    It is tried again by itself.
model-garbled | The model's reply can't be read
    What came is not what the provider's API sends.
    It is tried again by itself; check ANTHROPIC_BASE_URL if it stays so.
model-request-refused | The model's provider refuses the request
    It says that the request is not valid; the message tells why.
    It is not tried again. See the step's log.
model-refused | The model refused to answer
    The model declined the content of the request.
    Word the task differently.
model-repeated-call | The model used one call's id twice
    Two tool calls of a conversation had the same id, so that their results could not be told apart.
    It is tried again by itself.
budget-exhausted | The task's budget is used up
    The gateway lets no further call through: the task has spent what it was allowed.
    Answer the step's question with a higher budget, or cancel the task.
circuit-open | A provider is left alone for now
    It failed so often in a row that the gateway asks it nothing until it has had time to recover.
    It is tried again by itself.
run-token-invalid | The gateway no longer knows this run
    The claim that the run's token was made for has ended, or its worker was asleep for longer than its lease.
    It is tried again by itself, unless another worker has the step or it is over.
model-not-allowed | The run may not use this model
    The gateway lets each run use its own models alone.
    Name the model with the task, or allow it for all runs, then: orchestrator task retry <id>
price-unknown | The model's price isn't known
    A budget in USD can't be kept with a model whose price nobody has entered.
    Set ORCHESTRATOR_PRICES='{"MODEL": {"input": "0.2", "output": "0.6"}}', or bound by tokens or turns.
provider-missing | The gateway has no way to this model's provider
    Neither a key nor an address of it is configured.
    Set ANTHROPIC_API_KEY or OPENAI_API_KEY where the gateway runs and restart it.
gateway-unready | The gateway can't work at the moment
    It can't reach its database, without which it can't count what is spent.
    It is tried again by itself; see: orchestrator doctor
too-many-calls | The run has too many calls under way
    The gateway lets a run make a few calls at a time.
    It is tried again by itself.
provider-throttled | The provider limits requests
    It has told the gateway to wait, and the gateway keeps to that for everybody.
    It is tried again when the provider says so.
provider-unreachable | The gateway can't reach the provider
    The connection failed before a reply began.
    It is tried again by itself.
provider-timeout | The provider did not answer the gateway in time
    No reply began within the time allowed.
    It is tried again by itself.
context-too-long | The conversation is too long
    The step's conversation doesn't fit the model's context any more.
    Split the work into smaller steps.
limit-mistakes | Too many mistakes in a row
    The model made no call that could be run, several turns in a row.
    See the step's log; describe the step more precisely.
agent-stuck | The agent goes in circles
    It did the same again and again. It was told so, put back, and a person was asked; it did not help.
    See the step's log; describe the step more precisely, or give it to another agent or model.
limit-turns | Not done within the turns allowed
    The step used as many turns as ORCHESTRATOR_MAX_TURNS allows.
    Split the step, or raise the limit.
limit-tokens | Not done within the tokens allowed
    The step used as many tokens as ORCHESTRATOR_MAX_TOKENS allows.
    Split the step, or raise the limit.
limit-cost | Not done within the cost allowed
    The step cost as much as ORCHESTRATOR_MAX_COST_USD allows.
    Split the step, or raise the limit.
limit-processes | Too many processes
    The agent started more processes than the sandbox allows one step.
    See what it runs in the step's log: mostly a test suite that forks without end.
limit-wall-time | Not done within the time allowed
    The step's agent worked for as long as ORCHESTRATOR_MAX_WALL_TIME allows.
    Split the step, or raise the limit.
needs-conflict | What the step needs can't be merged
    Two steps that it builds on changed the same lines.
    Let one of them need the other, and run the task again.
artifact-too-large | The file is too large to be kept
    A file is longer than an artifact may be.
    Leave it out of the commit.
commit-missing | A commit is nowhere to be found
    A commit that the step builds on is neither on this worker nor in the artifact store.
    Give all workers the same ORCHESTRATOR_ARTIFACT_URL, then: orchestrator task retry <id>
git-failed | git failed
    A git command of ours failed; the message is git's own.
    See the worker's log. It is tried again by itself.
tree-refused | What lies in the workspace can't be committed
    Git takes it for an attack (an address in .gitmodules, a name like .git), or can't read it, as it says.
    Say in the task what to avoid, or correct the repository, and run it again: orchestrator task retry <id>
ref-moved | The branch is not where it was expected
    Somebody else moved the branch between reading and writing it. Nothing was overwritten.
    Run it again: orchestrator task retry <id>
push-refused | The repository refused the push
    It answered, and said no: protected branch, a hook, or no right to write.
    Give the worker's credentials that right, then: orchestrator task retry <id>
sandbox-unavailable | Commands can't be confined here
    ORCHESTRATOR_STRICT_SANDBOX is set and bubblewrap is missing or can't make a sandbox.
    Install or allow bubblewrap (orchestrator doctor tells how), or unset the setting.
workspace-gone | The workspace is gone
    The attempt's folder was removed while it was in use.
    It is tried again by itself, in a new one.
workspace-io | The workspace can't be read or written
    The disk is full or broken.
    Make room where ORCHESTRATOR_DATA_DIR is. It is tried again by itself.
workspace-name | The workspace can't be named
    The step's id holds characters that a folder's name can't have.
    Give the step another id.
workspace-stuck | The workspace can't be removed
    A file in it resists, most often for its owner or its mode.
    Remove it by hand where ORCHESTRATOR_DATA_DIR is.
message-forged | A message is not signed by this installation
    The signature of a message from the broker doesn't fit it, so nothing was done.
    Give all processes the same ORCHESTRATOR_MESSAGE_SECRET, and nobody else the broker's password.
broker-unsupported | No such kind of broker
    The broker's URL begins with something other than redis, rediss, sentinel or amqp.
    Correct ORCHESTRATOR_BROKER_URL.
flower-password-missing | Flower needs a password
    Flower shows every task and worker, and FLOWER_BASIC_AUTH is not set.
    Set FLOWER_BASIC_AUTH=user:password, or use the one that `orchestrator up` starts.
unknown-queue | There is no such queue
    A worker was told to serve a queue that doesn't exist.
    Use critical, high, medium, low and system.
unknown-service | There is no such part of the stack
    No service or kind of services has this name.
    See those that there are: orchestrator ps
still-stopping | The stack is still stopping
    Workers end the turn that they are in first.
    Wait, or ask again to stop it at once.
no-restart | The restart took too long
    The service wasn't ready again within the time allowed.
    See what it does: orchestrator logs <service>
no-data-folder | The data folder can't be used
    It can't be made or written to.
    Choose another one: --data DIR
no-free-port | No port is free
    All ports that were tried are taken.
    Choose another one: --port
no-postgres | There is no Postgres to start
    Neither a Postgres of yours is configured nor are the programs of one installed.
    pip install 'orchestrator[local]', or set ORCHESTRATOR_DATABASE_URL.
no-postgres-user | Postgres can't run as root
    The stack was started as root, and no unprivileged user could be made for Postgres.
    Start it as another user, or set ORCHESTRATOR_DATABASE_URL.
postgres-not-made | The embedded Postgres could not be set up
    Its own message says why.
    Make room, or choose another data folder: --data DIR
no-redis | There is no Redis to start
    No redis-server or valkey-server is on PATH, and no wheel with one is installed.
    apt-get install redis-server, or set CELERY_BROKER_URL.
schema-not-upgraded | The database could not be brought up to date
    A migration failed; its message says why.
    See it by itself: orchestrator db upgrade
credentials-damaged | The installation's secrets can't be read
    The file credentials.toml in the data folder isn't what was written there.
    Restore it from a backup.
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
parameter-unknown | There is no such query parameter
    The route doesn't know a parameter of the query; ignoring it would answer another question.
    Leave it out, or correct its name; docs/reference/rest.md lists those that there are.
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
not-our-api | Something else answers at that address
    The answer doesn't have the form that this API gives.
    See what runs there, or name another address: --api-url or ORCHESTRATOR_API_URL
setting-invalid | A setting is not valid
    A value in the environment isn't one that the setting can have.
    Correct it; docs/reference/settings.md has all of them.
option-invalid | An option of the command is not valid
    Its value isn't one that it can have.
    See the command's --help.
file-unreadable | The file can't be read
    It isn't there, or may not be read.
    Name another file.
file-invalid | The file isn't a request
    It is not JSON, or not a JSON object.
    Write an object such as {"description": "…"}.
key-file-unreadable | The file with the key can't be read
    The file that --api-key-file names isn't there, or may not be read.
    Name a file that holds the key alone.
answer-missing | There is no answer
    Off a terminal the answer has to be on the command line.
    orchestrator task answer <id> --choice 1   or --text '…'
wait-timed-out | The task has not ended yet
    The time given to `task wait` is over; the task keeps running.
    Watch it: orchestrator task watch <id>
code-unknown | There is no such error code
    It is mistyped, or of another version.
    docs/reference/errors.md lists all of them.
file-unwritable | A file can't be written
    Its folder isn't there, is full, or may not be written to.
    Name another file.
not-confirmed | Nobody has confirmed it
    The command changes much, asks first, and nobody sits at the terminal.
    Add --yes.
broker-unreachable | The broker can't be reached
    Redis or RabbitMQ doesn't answer. Tasks are still accepted, and are carried out when it is back.
    See whether it runs: orchestrator ps
database-program-failed | A program of Postgres failed
    pg_dump or pg_restore ended with an error, which is shown.
    See that the database runs, and that nobody else uses it during a restore.
no-postgres-programs | There are no programs of Postgres
    Neither the embedded servers nor PATH have pg_dump and pg_restore.
    pip install 'orchestrator[local]', or install Postgres' client programs.
already-running | A stack already runs for this folder
    One folder has one stack.
    See it: orchestrator ps   Stop it: orchestrator down   A second one: --data DIR
not-running | Nothing runs for this folder
    No stack was started for it, or it has ended.
    Start it: orchestrator up
model-script-invalid | The model server's script is not valid
    A part of it is missing, unknown or of the wrong kind. Each one is named by a JSON pointer.
    Correct those parts. docs/how-to/develop-with-the-model-server.md shows the format.
model-script-unreadable | The model server's script can't be read
    The file isn't there, or may not be read.
    Give --script the path of a file that you can read.
model-recording-invalid | The recording is not valid
    A line of the file isn't a recording that the model server made, or there is none in it.
    Make one: orchestrator model-server --record FILE --upstream URL
model-recording-unreadable | The recording can't be read
    The file isn't there, may not be read, or isn't text.
    Give --replay the path of a file that you can read.
model-server-options | These options don't go together
    The model server plays a script, or a recording, or records what a real API says.
    Give one of --script FILE, --replay FILE, or --record FILE with --upstream URL.
"""


def _read(texts: str) -> dict[str, Explanation]:
    found: dict[str, Explanation] = {}
    lines = texts.strip().splitlines()
    for head, cause, fix in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        code, _, title = head.partition(" | ")
        found[code] = Explanation(title, cause.strip(), fix.strip())
    return found


EXPLANATIONS: Final[Mapping[str, Explanation]] = MappingProxyType(_read(_TEXTS))
