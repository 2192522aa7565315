"""Ray Job: score rows in bulk with a registered version.

Reads `--input` (a path, a Delta table, or `source`, the project's own) in blocks and writes scores to `--output`, a
folder of Parquet files or `delta:PATH`. Cut off, it goes on with `--resume`.

    ray job submit --working-dir . -- python jobs/score.py --config configs/flights.yaml --input rows --output scores
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("score", sys.argv[1:]))
