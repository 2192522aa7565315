"""Ray Job: from the newest dataset version to a registered model version.

Splits by time, fits features on the shards, searches with Ray Tune and judges the winner against the champion. Exit
code 3 says that the gates refused it; their reasons stand on standard error and in the MLflow run.

    ray job submit --working-dir . -- python jobs/train.py --config configs/flights.yaml
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("train", sys.argv[1:]))
