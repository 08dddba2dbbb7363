"""`orchestrator model-server`: a model that is played, for development and tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.core.errors import Refused

if TYPE_CHECKING:
    from orchestrator.modelserver.stage import Stage


def model_server(
    script: Annotated[
        Path | None,
        typer.Option("--script", "-s", help="A script (JSON): what the model says, turn by turn."),
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="A recording, whose replies are given again.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="A file to which a real API's replies are added; needs --upstream.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="The real API's root, as https://api.anthropic.com, without /v1.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 8801,
    log: Annotated[Path | None, typer.Option(help="A file that gets a line (JSON) per request.")] = None,
) -> None:
    """Start a server that speaks the model APIs and plays a script or a recording.

    Anthropic Messages, OpenAI Responses and Chat Completions. It takes any key, and misbehaves when told to.
    """
    import asyncio

    if (record is None) != (upstream is None) or sum(map(bool, (script, replay, record))) > 1:
        raise Refused(
            "model-server-options",
            "These options don't go together.",
            "Give one of --script FILE, --replay FILE, or --record FILE with --upstream URL.",
        )
    asyncio.run(_serve(_stage(script, replay, log), host, port, record, upstream))


def _stage(script: Path | None, replay: Path | None, log: Path | None) -> Stage:
    from orchestrator.modelserver import recordings
    from orchestrator.modelserver.script import Script, load
    from orchestrator.modelserver.sends import SendLog
    from orchestrator.modelserver.stage import Stage

    if replay is not None:
        return Stage(recordings.load(replay), SendLog(log), knows_ids=False)
    return Stage.of(load(script) if script is not None else Script(), SendLog(log))


async def _serve(stage: Stage, host: str, port: int, record: Path | None, upstream: str | None) -> None:
    """Until told to stop."""
    import asyncio
    import signal
    from contextlib import AsyncExitStack

    from orchestrator.modelserver.recordings import Recorder
    from orchestrator.modelserver.server import ModelServer
    from orchestrator.modelserver.upstream import Upstream, client

    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with AsyncExitStack() as stack:
        if record is not None and upstream is not None:
            stage.knows_ids = False
            root = upstream.rstrip("/").removesuffix("/v1")
            stage.upstream = Upstream(root, Recorder(record), await stack.enter_async_context(client()))
        chosen = await stack.enter_async_context(ModelServer(stage).listening(host, port))
        print(f"model server at http://{host}:{chosen}", flush=True)
        await over.wait()
