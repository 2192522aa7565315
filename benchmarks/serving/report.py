"""The tables: what each server did, and the goals of serving beside their figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Figures = dict[str, Any]

PEERS_ON_SKLEARN = ("mlflow models serve", "MLServer, scikit-learn", "BentoML, scikit-learn")
OURS = "mlops_ray"
DESCRIBED = {
    OURS: "**mlops_ray**, `mlops-ray up`, capture and monitoring on",
    "canary": "mlops_ray with a canary at 10 %",
    "uncaptured": "mlops_ray without capture (no product option)",
    "bare Serve": "bare Ray Serve ASGI ingress, the same ONNX graph",
    "our app, uvicorn": "mlops_ray's application under bare uvicorn, capture on",
    "bare uvicorn": "bare uvicorn, the same ONNX graph (the ceiling)",
}


def summary(samples: Sequence[Mapping[str, Any]]) -> Figures:
    """Medians over the rounds of one server at one number of connections, and all its failures."""
    figures: Figures = {
        name: statistics.median(sample[name] for sample in samples) for name in ("per_s", "p50_us", "p99_us", "cpu_us")
    }
    figures["errors"] = sum(sample["refused"] + sample["broken"] for sample in samples)
    return figures


def table(results: Mapping[str, Mapping[str, Figures]]) -> str:
    """Markdown; `results` by server and number of connections (as text)."""
    lines = [
        "| server, one row per request | 1 connection: p50 / p99 | 16: requests/s | p50 / p99 | 64: requests/s | p99 |"
        " CPU per request at 16 | errors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, by_connections in results.items():
        one, some, many = (by_connections[c] for c in ("1", "16", "64"))
        errors = sum(each["errors"] for each in by_connections.values())
        cells = [
            DESCRIBED.get(name, name),
            f"{_ms(one['p50_us'])} / {_ms(one['p99_us'])}",
            f"{some['per_s']:,.0f}",
            f"{_ms(some['p50_us'])} / {_ms(some['p99_us'])}",
            f"{many['per_s']:,.0f}",
            _ms(many["p99_us"]),
            f"{some['cpu_us']:,.0f} µs",
            f"{errors}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(
    results: Mapping[str, Mapping[str, Figures]], ratios: Mapping[str, Sequence[float]], bulk: Figures
) -> list[dict[str, Any]]:
    """Each goal with its figure of this run. ratios: one a round, between servers of that round."""
    ours = results[OURS]["16"]
    found = []
    for peer in PEERS_ON_SKLEARN:
        if peer in results:
            theirs = results[peer]["16"]
            found.append(_at_least(f"16 connections: throughput, × {peer}", 20, ratios[peer]))
            lower = ours["p99_us"] < theirs["p99_us"]
            shown = f"{_ms(ours['p99_us'])} against {_ms(theirs['p99_us'])}"
            found.append(_goal(f"16 connections: p99, and that of {peer}", "lower", shown, lower))
    p50 = results[OURS]["1"]["p50_us"]
    found.append(_goal("1 connection: p50", "< 1.2 ms", _ms(p50), p50 < 1200))
    for name, said, goal in (
        ("canary", "canary at 10 %: throughput, × without one", 0.85),
        ("uncaptured", "capture and monitoring on: throughput, × off", 0.95),
        ("bare Serve", "throughput, × a bare Ray Serve ingress", 0.8),
        ("bare uvicorn", "throughput, × bare uvicorn, the ceiling", 0.5),
    ):
        found.append(_at_least(said, goal, ratios[name]))
    said = "Arrow IPC of 10,000 rows, one request at a time: rows/s, × ONNX Runtime itself"
    found.append(_at_least(said, 0.6, bulk["ratios"]))
    return found


def _at_least(what: str, goal: float, ratios: Sequence[float]) -> dict[str, Any]:
    """The median decides; the lowest and the highest round stand beside it, for they tell what the median is worth."""
    median = statistics.median(ratios)
    shown = f"{_number(median)} ({_number(min(ratios))} to {_number(max(ratios))})"
    return _goal(what, f"≥ {goal:g}", shown, median >= goal)


def _goal(what: str, goal: str, figure: str, reached: bool) -> dict[str, Any]:
    return {"what": what, "goal": goal, "figure": figure, "reached": reached}


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def goals_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = ["| goal | wanted | measured (lowest to highest round) | |", "|---|--:|--:|---|"]
    lines += [f"| {g['what']} | {g['goal']} | {g['figure']} | {'yes' if g['reached'] else '**no**'} |" for g in found]
    return "\n".join(lines)


def bulk_table(bulk: Figures) -> str:
    """Markdown."""
    lines = ["| 10,000 rows at a time | rows/s |", "|---|--:|"]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in bulk["rows_per_s"].items()]
    return "\n".join(lines)


def _ms(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us < 10_000 else f"{us / 1000:,.0f} ms"
