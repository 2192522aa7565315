"""Ray Job: carry out one retraining decision.

Builds the decision's dataset version from captured rows and their labels, trains, judges, and opens a rollout if the
gates pass. The monitor submits it with `--decision`; by hand it records a decision of its own, with `--reason`.

    ray job submit --working-dir . -- python jobs/retrain.py --config configs/flights.yaml --reason "new airport"
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("retrain", sys.argv[1:]))
