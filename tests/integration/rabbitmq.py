"""A RabbitMQ node for the tests: on free loopback ports, with an epmd and a home folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kombu import Connection

PATIENCE_SECONDS = 60
# Debian's wrapper on PATH insists on its own user, folders and service.
PROGRAMS = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)


@dataclass(frozen=True, slots=True)
class Node:
    """`environment` is what RabbitMQ's own programs need to find it, and nobody else's."""

    url: str
    environment: Mapping[str, str]


@contextmanager
def serve_rabbitmq(folder: Path) -> Iterator[Node]:
    """A node that keeps everything in `folder` and ends with the block."""
    node, distribution, mapper = (_free_port() for _ in range(3))
    environment = _environment(folder, node, distribution, mapper)
    url = f"amqp://guest:guest@127.0.0.1:{node}//"
    with (folder / "output.log").open("wb") as output:
        # epmd is started first and in the foreground, so that it is ours to end.
        epmd = subprocess.Popen(
            ["epmd", "-address", "127.0.0.1", "-port", str(mapper)],
            env=environment,
            stdout=output,
            stderr=output,
        )
        server = subprocess.Popen(
            [_program()], env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await(url, server, folder)
        yield Node(url, environment)
    finally:
        _end(server)
        epmd.terminate()
        epmd.wait(PATIENCE_SECONDS)


def _program() -> str:
    return (
        next((path for path in PROGRAMS if Path(path).exists()), None)
        or shutil.which("rabbitmq-server")
        or ""
    )


def _environment(folder: Path, node: int, distribution: int, mapper: int) -> Mapping[str, str]:
    plugins = folder / "enabled_plugins"
    plugins.write_text("[].")
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"test{node}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(node),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _await(url: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "output.log").read_text(errors="replace")) from None
            time.sleep(0.1)


def _end(server: subprocess.Popen[bytes]) -> None:
    """The script, the Erlang machine and its helpers are one group."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(PATIENCE_SECONDS)
