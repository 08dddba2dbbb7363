"""The worker of the benchmarks, production's but for the agent; run by `tests.integration.celery_worker`.

BENCHMARK_AGENT chooses the agent; BENCHMARK_ORDERS names the file of orders to die at a COMMIT;
BENCHMARK_FENCE=none takes the fence out of this process, the negative control; BENCHMARK_REDIS_SECONDS is how
long an answer of Redis is waited for.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from celery import Task

from orchestrator import bootstrap
from orchestrator.tasks.registry import register
from tests.agents_ready import engine_alone
from tests.benchmarks import crash_points, unfenced
from tests.benchmarks.scripted import scripted_agent, sleeper
from tests.benchmarks.worker_names import BARE

_AGENTS = {"scripted": scripted_agent, "sleeper": sleeper}

if os.environ.get("BENCHMARK_FENCE") == "none" and not unfenced.take_out():
    raise AssertionError("there is no fence to take out")

if "BENCHMARK_ORDERS" in os.environ:
    crash_points.obey(Path(os.environ["BENCHMARK_ORDERS"]))

wiring = replace(
    bootstrap.load("benchmarks"),
    make_agent=_AGENTS[os.environ.get("BENCHMARK_AGENT", "scripted")],
    ready=engine_alone,
    publish_retry=True,
)
registered = register(wiring)
app = registered.app
if "BENCHMARK_REDIS_SECONDS" in os.environ:
    seconds = float(os.environ["BENCHMARK_REDIS_SECONDS"])
    app.conf.redis_socket_timeout = seconds
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "socket_timeout": seconds}


@app.task(name=BARE, bind=True, shared=False)
def bare(self: Task, /, **arguments: str) -> dict[str, str]:  # type: ignore[type-arg]
    """The same message, and nothing done with it."""
    del self
    return {"step_id": arguments["step_id"]}
