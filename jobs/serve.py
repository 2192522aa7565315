"""Ray Job: make Ray Serve agree with the serving configuration that the state database wants.

Deploys the project's applications and ends; Serve keeps them running. Safe to repeat: what agrees is left alone.

    ray job submit --working-dir . -- python jobs/serve.py --config configs/flights.yaml
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("serve", sys.argv[1:]))
