"""How fast it is, and how little slower than doing nothing: medians of three, everything real.

    scripts/bench [--only NAME] [--json] [--dags DIR]

NAME is throughput, latency, gateway, makespan, growth or parser, which a run without it measures, or one of
those that take minutes more and are measured by name alone: recovery (kill -9 in the middle of a step, about
five minutes), parked (a thousand tasks that wait for a person, about three) and turns (what one turn of the
agent costs when the conversation is short and when it is long, about one).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import structlog

from tests.benchmarks import (
    gateway,
    growth,
    latency,
    makespan,
    parked,
    parsing,
    recovery,
    throughput,
    turns,
)

NAMES: Final = ("throughput", "latency", "gateway", "makespan", "growth", "parser")
BY_NAME_ALONE: Final = ("recovery", "parked", "turns")
_ENOUGH_BY_CANVAS: Final = 0.8
_WORTH_A_WORD_MS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement: `values` are the keys of `--json`, `lines` a table: what, value, bound, good."""

    values: Mapping[str, Any]
    lines: Sequence[tuple[str, str, str, bool]]


def _throughput(_: argparse.Namespace) -> Result:
    found = throughput.measure()
    bare, durable = median(found.bare), median(found.durable)
    return Result(
        {
            "ratio_durable_to_bare_celery": round(found.ratio, 3),
            "bare_steps_per_second": [round(value, 1) for value in found.bare],
            "durable_steps_per_second": [round(value, 1) for value in found.durable],
            "bare_cpu_ms_per_step": {name: round(ms, 2) for name, ms in found.bare_cpu.items()},
            "durable_cpu_ms_per_step": {name: round(ms, 2) for name, ms in found.durable_cpu.items()},
        },
        [
            ("bare Celery, steps per second", f"{bare:.1f}", "", True),
            ("durable, steps per second", f"{durable:.1f}", "", True),
            ("bare Celery, ms of CPU per step", _spent(found.bare_cpu), "", True),
            ("durable, ms of CPU per step", _spent(found.durable_cpu), "", True),
            ("durable ÷ bare", f"{found.ratio:.3f}", "≥ 0.5", found.ratio >= 0.5),
        ],
    )


def _spent(cpu: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in cpu.items() if ms >= _WORTH_A_WORD_MS)
    return f"{sum(cpu.values()):.1f} ({parts})"


def _latency(_: argparse.Namespace) -> Result:
    found = latency.measure()
    submitted, answered = latency.summary(found.submitted), latency.summary(found.answered)
    return Result(
        {"submit_to_running_ms": submitted, "answer_to_running_ms": answered},
        [
            _percentiles("submit → running, ms", submitted, 25),
            _percentiles("answer → running, ms", answered, 100),
        ],
    )


def _gateway(_: argparse.Namespace) -> Result:
    found = gateway.measure()
    direct, through = latency.summary(found.direct), latency.summary(found.through)
    added = round(median(found.added), 2)
    return Result(
        {
            "first_byte_ms": {"direct": direct, "through_gateway": through},
            "gateway_adds_ms_p50": added,
        },
        [
            ("first byte, straight to the provider, ms", _shown(direct), "", True),
            ("first byte, through the gateway, ms", _shown(through), "", True),
            ("what the gateway adds, p50, ms", f"{added}", "≤ 5", added <= 5),
        ],
    )


def _percentiles(what: str, found: Mapping[str, float], most: float) -> tuple[str, str, str, bool]:
    return what, _shown(found), f"p50 ≤ {most:g}", found["p50"] <= most


def _makespan(options: argparse.Namespace) -> Result:
    found = makespan.measure(options.dags, options.critical_path)
    starts: dict[str, int] = {}
    for each in found:
        for by, count in each.starts.items():
            starts[by] = starts.get(by, 0) + count
    least = min(each.by_canvas for each in found)
    swept = starts.get("sweep", 0)
    return Result(
        {
            "makespan": {each.dag.name: round(each.ratio, 4) for each in found},
            "canvas_starts": round(least, 3),
            "sweep_starts": swept,
            "starts": {each.dag.name: each.starts for each in found},
        },
        [
            *(
                (f"makespan {each.dag.name}", f"{each.ratio:.4f}", "≤ 1.05", each.ratio <= 1.05)
                for each in found
            ),
            ("started by a canvas, at least", f"{least:.3f}", "≥ 0.8", least >= _ENOUGH_BY_CANVAS),
            ("started by the sweep", str(swept), "0", swept == 0),
        ],
    )


def _growth(_: argparse.Namespace) -> Result:
    found = growth.measure()
    few, many = median(found.few), median(found.many)
    return Result(
        {
            "cost_growth": round(found.ratio, 3),
            "step_ms": {"few": round(few, 2), "many": round(many, 2)},
            "sweep_ms": {
                "few": round(median(found.few_sweep), 2),
                "many": round(median(found.many_sweep), 2),
            },
        },
        [
            (f"ms per step at {growth.FEW:,} rows", f"{few:.2f}", "", True),
            (f"ms per step at {growth.MANY:,} rows", f"{many:.2f}", "", True),
            ("growth", f"{found.ratio:.3f}", "≤ 1.2", found.ratio <= 1.2),
        ],
    )


def _parser(_: argparse.Namespace) -> Result:
    found, enough = parsing.measure(), parsing.ENOUGH_MB_PER_SECOND
    return Result(
        {"parser_mb_per_second": {name: round(speed, 1) for name, speed in found.speeds.items()}},
        [
            (
                f"stream parser, {name}, MB/s",
                f"{speed:.1f}",
                "" if name == "small calls alone" else f"≥ {enough:g}",
                name == "small calls alone" or speed >= enough,
            )
            for name, speed in found.speeds.items()
        ],
    )


def _recovery(_: argparse.Namespace) -> Result:
    found = recovery.measure()
    values = recovery.as_json(found)
    promised = values["recovery_promised_s"]
    asked_again, others = values["turns_asked_again"], values["recoveries_otherwise_than_expected"]
    lines = []
    for name, seconds in values["recovery_s"].items():
        most = promised["default" if name == "child_default_settings" else "test"]
        shown = f"p50 {seconds['p50']:.2f}  max {seconds['max']:.2f}  n {seconds['n']}"
        what = f"kill -9 of {name.replace('_', ' ')} → running, s"
        lines.append((what, shown, f"max ≤ {most:g}", seconds["max"] <= most))
    return Result(
        values,
        [
            *lines,
            ("finished turns that were asked for again", str(asked_again), "0", asked_again == 0),
            ("went on otherwise than from the last turn", str(others), "0", others == 0),
        ],
    )


def _parked(_: argparse.Namespace) -> Result:
    found = parked.measure()
    values = parked.as_json(found)
    one = values["parked"]
    free, alone, rush = (
        one["slot_free_ms"],
        one["answer_to_running_ms"],
        one["answer_in_a_rush_to_running_ms"],
    )
    sweeps = f"{one['sweep_ms']['before']} → {one['sweep_ms']['beside']}"
    return Result(
        values,
        [
            (f"{found.tasks:,} tasks ask and park, s", f"{found.park:.1f}", "", True),
            ("park → slot free, ms", _shown(free), "p95 ≤ 1000", free["p95"] <= 1000),
            ("others to their end, before, s", f"{found.others_before:.2f}", "", True),
            ("others to their end, beside the parked, s", f"{found.others_beside:.2f}", "", True),
            ("one sweep, before → beside, ms", sweeps, "", True),
            ("answer → running, idle slot, ms", _shown(alone), "p95 ≤ 2000", alone["p95"] <= 2000),
            ("answer → running, all answered at once, ms", _shown(rush), "", True),
            ("all answered → all ended, s", f"{found.finish:.1f}", "", True),
            ("counts that are wrong", str(found.wrong or "none"), "none", not found.wrong),
        ],
    )


def _turns(_: argparse.Namespace) -> Result:
    found = turns.measure()
    early, late = f"turn {turns.EARLY}", f"turn {turns.LATE}"
    own, whole = (
        (median(found.own_early), median(found.own_late)),
        (median(found.whole_early), median(found.whole_late)),
    )
    cpu = median(found.cpu_early), median(found.cpu_late)
    return Result(
        {
            "turn_own_ms": [round(ms, 2) for ms in own],
            "turn_own_cpu_ms": [round(ms, 2) for ms in cpu],
            "turn_whole_ms": [round(ms, 2) for ms in whole],
            "turn_growth": round(found.growth, 3),
        },
        [
            (f"own work, {early} → {late}, ms", f"{own[0]:.2f} → {own[1]:.2f}", "", True),
            (f"of it the processor's, {early} → {late}, ms", f"{cpu[0]:.2f} → {cpu[1]:.2f}", "", True),
            ("growth of own work", f"{found.growth:.3f}", "≤ 1.2", found.growth <= 1.2),
            (f"whole but the model, {early}, ms", f"p50 {whole[0]:.2f}", "≤ 10", whole[0] <= 10),
            (f"whole but the model, {late}, ms", f"p50 {whole[1]:.2f}", "≤ 25", whole[1] <= 25),
        ],
    )


def _shown(found: Mapping[str, float]) -> str:
    return f"p50 {found['p50']}  p95 {found['p95']}  n {found['n']:.0f}"


_MEASURES: Final[Mapping[str, Callable[[argparse.Namespace], Result]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "gateway": _gateway,
    "makespan": _makespan,
    "growth": _growth,
    "parser": _parser,
    "recovery": _recovery,
    "parked": _parked,
    "turns": _turns,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=(*NAMES, *BY_NAME_ALONE))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dags", type=Path, default=makespan.DAGS, help="a folder of *.json plans")
    parser.add_argument(
        "--critical-path", type=float, default=makespan.CRITICAL_PATH_SECONDS, help="seconds, for makespan"
    )
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    results = []
    for name in [options.only] if options.only else NAMES:
        began = time.monotonic()
        print(f"{name} …", file=sys.stderr)
        results.append(_MEASURES[name](options))
        print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.json:
        print(
            json.dumps({key: value for result in results for key, value in result.values.items()}, indent=1)
        )
    else:
        print(_table([line for result in results for line in result.lines]))
    return 0


def _table(lines: Sequence[tuple[str, str, str, bool]]) -> str:
    first, second, third = (max(map(len, column)) for column in list(zip(*lines, strict=True))[:3])
    return "\n".join(
        f"{what:<{first}}  {value:>{second}}  {bound:<{third}}  {'' if good else 'MISSED'}".rstrip()
        for what, value, bound, good in lines
    )


if __name__ == "__main__":
    sys.exit(main())
