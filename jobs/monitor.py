"""Ray Job: make sure that the monitoring and rollout actors run.

Starts the detached actors that are missing and ends; they resume from the state database. Safe to repeat.

    ray job submit --working-dir . -- python jobs/monitor.py --config configs/flights.yaml
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("monitor", sys.argv[1:]))
