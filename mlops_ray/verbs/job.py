"""What the scripts in `jobs/` share: arguments in, one verb called, one JSON line out, an exit code.

A job is what `ray job submit` starts, so its standard output holds the result and nothing else of ours, and a failure
is a sentence on standard error. The verbs are imported when one runs: `--help` answers without Ray.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from mlops_ray.errors import MlopsRayError

PURPOSE = {
    "prepare": "Read the source, check every row, and commit a dataset version.",
    "train": "Train on what prepare made or found last; register the winner if it passes its gates.",
    "serve": "Make Ray Serve agree with the serving configuration that the state database wants.",
    "monitor": "Make sure that the monitoring and rollout actors run.",
    "score": "Score rows in bulk with a registered version.",
    "retrain": "Carry out a retraining decision: build its dataset, train, judge, open a rollout.",
}


_MODULE = {"score": "mlops_ray.verbs.scoring"}


def run_job(verb: str, argv: Sequence[str]) -> int:
    """Run `verb` with the arguments `argv` (without the program's name) and return the process's exit code.

    Prints the verb's result as one line of JSON. A `MlopsRayError` becomes its sentence on standard error and its
    `exit_code` (1 fault, 2 configuration, 3 refused by the gates); any other exception passes through, with traceback.
    """
    args = _parser(verb).parse_args(argv)
    paths: list[str] = args.config
    # Secrets enter here and go on as a value: no other room reads the environment.
    call: dict[str, Any] = {"paths": paths, "env": dict(os.environ)}
    if verb == "retrain":
        call |= {"decision": args.decision, "reason": args.reason}
    if verb == "score":
        call |= {"data": args.input, "output": args.output, "version": args.version, "resume": args.resume}
    try:
        result = getattr(importlib.import_module(_MODULE.get(verb, "mlops_ray.verbs")), verb)(**call)
    except MlopsRayError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    sys.stdout.write(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
    return 0


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jobs/{verb}.py", description=PURPOSE[verb])
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="FILE",
        help="project file; give it again for each overlay, the last one wins",
    )
    if verb == "retrain":
        parser.add_argument(
            "--decision", metavar="ID", help="decision to carry out; without it a manual one is recorded"
        )
        parser.add_argument("--reason", default="manual", help="what the ledger says about a manual retrain")
    if verb == "score":
        parser.add_argument("--input", required=True, help="a path, a Delta table, or `source`")
        parser.add_argument("--output", required=True, help="a folder, or delta:PATH")
        parser.add_argument("--version", default="champion", help="a number, or champion")
        parser.add_argument("--resume", action="store_true", help="go on with a batch that was cut off")
    return parser
