"""One row per request: mlops_ray beside `mlflow models serve`, MLServer, BentoML, a bare Ray Serve ingress and uvicorn.

    python benchmarks/serving/run.py

All serve the same fitted pipeline (10 numeric and 2 categorical columns, imputer, scaler, one-hot encoder, 100 trees)
or its ONNX graph, on this machine, at the same time; one at a time is under load (wrk, one thread), the others idle.
Figures are medians of interleaved rounds, ratios medians of the ratios within a round, with the lowest and the highest
beside them. Work besides the benchmark costs those most that need both cores: run it on an idle machine. The first
run trains the project and makes an environment for each peer (some minutes, 3 GB); wrk must be there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
CONNECTIONS = (1, 16, 64)
_ROWS = 200
_WARM_S = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-root", type=Path, default=ROOT / ".bench" / "serving", help="keeps peers' environments")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "serving-project", help="keeps the project")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement (default 4)")
    parser.add_argument("--no-peers", action="store_true", help="only what needs no further environment")
    parser.add_argument("--json", type=Path, help="writes every sample to this file")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: https://github.com/wg/wrk")
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlops_ray-serving-") as scratch:
        document = _measured(options, Path(scratch))
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(_told(document))


def _measured(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from benchmarks.measure import machine
    from benchmarks.serving import bulk, contestants, environments, load, ours, workload

    trained = ours.train(options.work)
    rows = workload.rows(_ROWS, seed=7)
    with contextlib.ExitStack() as stack:
        everybody = stack.enter_context(ours.served(trained, scratch, rows))
        versions: dict[str, str] = {}
        if not options.no_peers:
            peers = contestants.peers(options.env_root, scratch, trained.pipeline, trained.graph, rows)
            everybody = {each.name: each for each in stack.enter_context(peers)} | everybody
            for peer in environments.WANTED:
                versions |= environments.versions(environments.python_of(options.env_root, peer), (peer,))
        scripts = {
            name: load.script(scratch / f"{i}.lua", each.bodies, each.media_type)
            for i, (name, each) in enumerate(everybody.items())
        }
        samples: dict[str, dict[str, list[Any]]] = {name: {str(c): [] for c in CONNECTIONS} for name in everybody}
        loads: list[float] = []
        for at in range(options.rounds + 1):
            print(f"round {at} of {options.rounds}", file=sys.stderr, flush=True)
            if at:
                loads.append(os.getloadavg()[0])
            for connections in CONNECTIONS if at else CONNECTIONS[1:2]:  # the first round warms all of them
                for name, each in everybody.items():
                    sample = load.run(
                        each.url,
                        scripts[name],
                        connections=connections,
                        seconds=options.seconds if at else _WARM_S,
                        processes=each.processes,
                    )
                    if at:
                        samples[name][str(connections)].append(sample.to_dict())
        many = bulk.samples(everybody, trained.graph, scratch, rounds=options.rounds, seconds=options.seconds)
    return {"machine": machine(), "versions": versions, "load": loads, "samples": samples, "bulk": many}


def _told(document: dict[str, Any]) -> str:
    """The tables in Markdown."""
    from benchmarks.serving import report

    samples = document["samples"]
    results = {name: {c: report.summary(each) for c, each in by.items()} for name, by in samples.items()}
    ours = [sample["per_s"] for sample in samples[report.OURS]["16"]]
    ratios = {
        name: [mine / theirs["per_s"] for mine, theirs in zip(ours, by["16"], strict=True)]
        for name, by in samples.items()
    }
    ratios["canary"] = [1 / ratio for ratio in ratios["canary"]]  # with a canary by without one
    parts = [
        report.table(results),
        _circumstances(document),
        report.goals_table(report.goals(results, ratios, document["bulk"])),
        report.bulk_table(document["bulk"]),
    ]
    return "\n\n".join(parts)


def _circumstances(document: dict[str, Any]) -> str:
    told = [document["machine"], *(f"{name} {version}" for name, version in document["versions"].items())]
    loads = ", ".join(f"{load:.1f}" for load in document["load"])
    return (
        f"{'; '.join(told)}. {len(document['load'])} rounds; load average before each (other work included): {loads}."
    )


if __name__ == "__main__":
    main()
