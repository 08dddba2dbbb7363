"""One conversation with one MCP server, for callers that are not asynchronous.

A server is somebody else's program. One on stdio runs in the sandbox; one behind HTTP is reached from here,
under the same rules as any page. It may die, hang, flood or lie: a call then ends with `ServerFailed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import anyio
import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from orchestrator.core.assignment import Stop
from orchestrator.engine.event_loop import EventLoop
from orchestrator.engine.ports import ServedProcess, Stopped
from orchestrator.engine.web import HostPolicy, HostRefused, PinnedTransport

LONGEST_MESSAGE: Final = 8 * 1024**2
MOST_BYTES: Final = 64 * 1024**2
"""All that one start of a server may say."""
MOST_PAGES: Final = 10
MOST_STARTS: Final = 2
START_SECONDS: Final = 20.0
_STDERR: Final = 2000

Streams = AbstractAsyncContextManager[Any]
T = TypeVar("T")


class ServerFailed(Exception):
    """It gave no usable answer; the text is for the model."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A server that was started, or is about to be reached."""

    streams: Streams
    last_words: Callable[[], str] = lambda: ""
    """What it said last outside of the protocol."""
    is_dead: Callable[[], bool] = lambda: False
    end: Callable[[], object] = lambda: None
    """Ends it for certain, if closing the streams didn't."""


class McpSession:
    """Starts its server when it is first needed, and once more after it died. One call at a time."""

    def __init__(self, loop: EventLoop, connect: Callable[[], Connection]) -> None:
        """`connect` starts the server, in the thread of whoever asks first."""
        self._loop = loop
        self._connect = connect
        self._lock = threading.Lock()
        self._starts = 0
        self._held: _Held | None = None
        self._started: list[Connection] = []

    def tools(self, stop: Stop) -> list[types.Tool]:
        """All that it offers. Raises `ServerFailed`, `Stopped`."""
        return self._ask(_listed, START_SECONDS, stop)

    def call(
        self, name: str, arguments: Mapping[str, Any], seconds: float, stop: Stop
    ) -> types.CallToolResult:
        """Sends it once, whatever happens. Raises `ServerFailed`, `Stopped`."""

        async def send(client: Client) -> types.CallToolResult:
            return await client.call_tool(name, dict(arguments))

        return self._ask(send, seconds, stop)

    def close(self) -> None:
        """Lets the server end in order; `end` afterwards, when the loop is closed."""
        if self._held is not None:
            self._held.release()

    def end(self) -> None:
        for connection in self._started:
            connection.end()

    def _ask(self, question: Callable[[Client], Coroutine[Any, Any, T]], seconds: float, stop: Stop) -> T:
        with self._lock:
            held = self._alive(stop)
            try:
                return self._loop.call(held.ask(question), seconds, stop)
            except Stopped:
                raise
            except TimeoutError:
                raise ServerFailed(f"the server gave no answer in {seconds:g} seconds") from None
            except _Gone:
                raise ServerFailed(f"the server died, the outcome is unknown{held.last_words()}") from None
            except Exception as error:  # whatever a foreign server makes the library raise
                raise ServerFailed(_reason(error)) from error

    def _alive(self, stop: Stop) -> _Held:
        if self._held is not None:
            if not self._held.is_gone:
                return self._held
            self._held.release()
        if self._starts >= MOST_STARTS:
            raise ServerFailed("the server died twice and is not started again")
        self._starts += 1
        try:
            connection = self._connect()
        except HostRefused as error:
            raise ServerFailed(
                f"the server may not be reached: {error}; ORCHESTRATOR_FETCH_HOSTS lists them"
            ) from error
        except Exception as error:  # a program that is none, a host that is forbidden
            raise ServerFailed(f"the server can't be started: {_reason(error)}") from error
        self._started.append(connection)
        self._held = held = _Held(connection)
        self._loop.begin(held.hold())
        try:
            self._loop.call(held.wait_until_ready(), START_SECONDS, stop)
        except Stopped:
            raise
        except TimeoutError:
            held.give_up()
            raise ServerFailed(f"the server was not ready in {START_SECONDS:g} seconds") from None
        except Exception as error:
            held.give_up()
            why = "it ended before it was ready" if held.is_closed_by(error) else _reason(error)
            raise ServerFailed(f"the server did not start: {why}{held.last_words()}") from error
        return held


class _Gone(Exception):
    """The connection ended."""


class _Held:
    """A connection, kept open by one task of the loop, since that must also close it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._ready = asyncio.Event()
        self._error: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None
        self._over = False

    @property
    def is_gone(self) -> bool:
        return self._over or self._connection.is_dead()

    def is_closed_by(self, error: Exception) -> bool:
        """Whether the error is only that the other end is gone."""
        return self._connection.is_dead() or isinstance(error, _Gone) or _is_closed(error)

    def last_words(self) -> str:
        said = self._connection.last_words().strip()
        return f"; it said last: {said}" if said else ""

    async def hold(self) -> None:
        self._task = asyncio.current_task()
        try:
            async with Client(self._connection.streams, cache=None) as client:
                self._client = client
                self._ready.set()
                await self._closing.wait()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._over = True
            self._ready.set()

    async def wait_until_ready(self) -> None:
        await self._ready.wait()
        if self._client is None:
            raise self._error or _Gone()

    async def ask(self, question: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        client = self._client
        if client is None or self._over:
            raise _Gone
        try:
            return await question(client)
        except Exception as error:
            if _is_closed(error):
                self._over = True
                self._closing.set()
                raise _Gone from error
            raise

    def release(self) -> None:
        """Lets it close in order."""
        self._tell(self._closing.set)

    def give_up(self) -> None:
        """It never became ready, so it has to be cut short."""
        self._over = True
        if self._task is not None:
            self._tell(self._task.cancel)

    def _tell(self, what: Callable[[], Any]) -> None:
        if self._task is not None:
            with contextlib.suppress(RuntimeError):
                self._task.get_loop().call_soon_threadsafe(what)


async def _listed(client: Client) -> list[types.Tool]:
    tools: list[types.Tool] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _is_closed(error: Exception) -> bool:
    code = getattr(getattr(error, "error", None), "code", None)
    return code == types.CONNECTION_CLOSED or isinstance(
        error, anyio.ClosedResourceError | anyio.BrokenResourceError
    )


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, HostRefused):
        return str(error)
    if isinstance(error, httpx2.ConnectError):
        return f"nothing answers at its address ({error})"
    return f"{type(error).__name__} {error}".strip()


# Transports ------------------------------------------------------------------------------------------------


def over_http(url: str, headers: Mapping[str, str], hosts: HostPolicy) -> Connection:
    """Raises `HostRefused`."""
    hosts.checked(url)

    @asynccontextmanager
    async def streams() -> AsyncIterator[Any]:
        given = {**headers, "accept-encoding": "identity"}
        transport = PinnedTransport(hosts, MOST_BYTES)
        timeout = httpx2.Timeout(30, read=600)
        async with (
            httpx2.AsyncClient(
                transport=transport, headers=given, timeout=timeout, trust_env=False
            ) as client,
            streamable_http_client(url, http_client=client) as both,
        ):
            yield both

    return Connection(streams())


def over_pipes(process: ServedProcess) -> Connection:
    """JSON-RPC by lines on stdin and stdout. Closing it ends the process."""
    said = bytearray()

    @asynccontextmanager
    async def streams() -> AsyncIterator[Any]:
        inbox, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, outbox = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with anyio.create_task_group() as group, read, write:
                group.start_soon(_hear, process, inbox)
                group.start_soon(_say, process, outbox)
                group.start_soon(_overhear, process, said)
                try:
                    yield read, write
                finally:
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: process.end(closing=0.2, terminating=0.5))

    return Connection(
        streams(),
        last_words=lambda: said.decode("utf-8", "replace"),
        is_dead=lambda: process.code() is not None,
        end=lambda: process.end(closing=0, terminating=0),
    )


@asynccontextmanager
async def _reader(pipe: Any, limit: int) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader(limit=limit)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()


async def _hear(process: ServedProcess, inbox: Any) -> None:
    """A line that is too long, or too many of them, end the connection; one that is no message does not."""
    left = MOST_BYTES
    async with inbox, _reader(process.stdout, LONGEST_MESSAGE) as reader:
        with contextlib.suppress(
            asyncio.IncompleteReadError, asyncio.LimitOverrunError, anyio.BrokenResourceError, OSError
        ):
            while left > 0:
                line = await reader.readuntil(b"\n")
                left -= len(line)
                await inbox.send(_message(line))


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _say(process: ServedProcess, outbox: Any) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        async with outbox:
            with contextlib.suppress(OSError):
                async for sent in outbox:
                    text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
                    writer.write(f"{text}\n".encode())
                    await writer.drain()
    finally:
        if not transport.is_closing():  # one whose other end is gone can't be aborted again
            transport.abort()


async def _overhear(process: ServedProcess, said: bytearray) -> None:
    """Stderr must be read, or the server would wait; its end is kept for whoever asks why it died."""
    async with _reader(process.stderr, 65536) as reader:
        while data := await reader.read(65536):
            said += data
            del said[:-_STDERR]
