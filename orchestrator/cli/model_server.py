"""`orchestrator model-server`: a model that is played, for development and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def model_server(
    script: Annotated[
        Path | None,
        typer.Option("--script", "-s", help="A script (JSON): what the model says, turn by turn."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 8801,
    log: Annotated[Path | None, typer.Option(help="A file that gets a line (JSON) per request.")] = None,
) -> None:
    """Start a server that speaks the model APIs and plays a script.

    Anthropic Messages, OpenAI Responses and Chat Completions. It takes any key, and misbehaves when told to.
    """
    import asyncio
    import signal

    from orchestrator.modelserver.faults import FaultPlan
    from orchestrator.modelserver.script import Script, load
    from orchestrator.modelserver.sends import SendLog
    from orchestrator.modelserver.server import ModelServer

    played = load(script) if script is not None else Script()
    server = ModelServer(played, SendLog(log), FaultPlan(played.faults), played.models)

    async def serve() -> None:
        over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        async with server.listening(host, port) as chosen:
            print(f"model server at http://{host}:{chosen}", flush=True)
            await over.wait()

    asyncio.run(serve())
