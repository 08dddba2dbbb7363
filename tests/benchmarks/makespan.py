"""How much longer than its critical path a plan takes, and who started its steps."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import networkx as nx
from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.queues.names import Lane
from tests.benchmarks.installation import REPOSITORY, Installation, installed
from tests.benchmarks.rounds import ROUNDS, await_ended, send, step

DAGS: Final = REPOSITORY / "tests" / "data" / "dags"
CRITICAL_PATH_SECONDS: Final = 30.0
_SPAN: Final = text(
    "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM tasks WHERE id = :task"
)
_STARTS: Final = text(
    "SELECT data ->> 'by' AS by, count(*) AS starts FROM events"
    " WHERE task_id = :task AND type = 'step' AND name = 'claim' AND fence = 1 GROUP BY 1"
)


@dataclass(frozen=True, slots=True)
class Dag:
    """A plan whose steps take time; `seconds` is scaled."""

    name: str
    steps: tuple[dict[str, Any], ...]
    critical_path: float
    width: int


@dataclass(frozen=True, slots=True)
class Makespan:
    """One DAG: makespan ÷ critical path of each round, and how many steps each kind of message started."""

    dag: Dag
    ratios: list[float]
    starts: dict[str, int]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def by_canvas(self) -> float:
        return self.starts.get("canvas", 0) / sum(self.starts.values())


def load(file: Path, critical_path: float) -> Dag:
    """A file of {"name", "steps": [{"id", "needs", "seconds"}]}."""
    data = json.loads(file.read_text())
    seconds = {one["id"]: float(one["seconds"]) for one in data["steps"]}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(seconds)
    graph.add_edges_from((need, one["id"]) for one in data["steps"] for need in one["needs"])
    ends: dict[str, float] = {}
    for key in nx.topological_sort(graph):
        ends[key] = seconds[key] + max((ends[need] for need in graph.predecessors(key)), default=0.0)
    scale = critical_path / max(ends.values())
    steps = tuple(step(one["id"], one["needs"], seconds=seconds[one["id"]] * scale) for one in data["steps"])
    return Dag(str(data["name"]), steps, critical_path, _width(graph))


def _width(graph: nx.DiGraph[str]) -> int:
    """The most steps that can run at once: nodes less a largest matching of the closure (Dilworth)."""
    closure = nx.transitive_closure_dag(graph)
    sides: nx.Graph[tuple[str, str]] = nx.Graph()
    sides.add_nodes_from(("from", node) for node in closure)
    sides.add_nodes_from(("to", node) for node in closure)
    sides.add_edges_from((("from", one), ("to", other)) for one, other in closure.edges)
    matching = nx.bipartite.maximum_matching(sides, top_nodes=[("from", node) for node in closure])
    return len(closure) - len(matching) // 2


def measure(
    dags: Path = DAGS, critical_path: float = CRITICAL_PATH_SECONDS, rounds: int = ROUNDS
) -> list[Makespan]:
    """Each DAG by itself on an idle worker with as many threads as the DAG is wide."""
    with installed() as here:
        here.tell_commit_times()
        here.run(here.worker("system", (Lane.SYSTEM,)), here.beat())
        return [_measure(here, load(file, critical_path), rounds) for file in sorted(dags.glob("*.json"))]


def _measure(here: Installation, dag: Dag, rounds: int) -> Makespan:
    print(f"  {dag.name}: {len(dag.steps)} steps, {dag.width} at once", file=sys.stderr)
    wiring = here.wiring("bench")
    found = Makespan(dag, [], {})
    sleeps = {"BENCHMARK_AGENT": "sleeper"}
    here.run(here.worker("agent", slots=dag.width, pool="threads", extra=sleeps))
    try:
        send(wiring, f"{dag.name}-warm", [step("warm")])
        await_ended(wiring, f"{dag.name}-warm", 1)
        for number in range(rounds):
            found.ratios.append(_span(wiring, dag, f"{dag.name}-{number}", found.starts) / dag.critical_path)
    finally:
        here.leave("agent")
    return found


def _span(wiring: Wiring, dag: Dag, task_id: str, starts: dict[str, int]) -> float:
    began = time.time()
    send(wiring, task_id, dag.steps)
    await_ended(wiring, task_id, 1)
    with wiring.engine.connect() as connection:
        last = connection.execute(_SPAN, {"task": task_id}).scalar_one()
        for row in connection.execute(_STARTS, {"task": task_id}):
            starts[row.by] = starts.get(row.by, 0) + row.starts
    return float(last) - began
