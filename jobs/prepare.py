"""Ray Job: from the project's source to a dataset version.

Reads the source with Ray Data, checks every row against the project file, sends bad rows to quarantine and commits the
good ones as a Delta version. Rows that are already a version are found by their content hash and not written again.

    ray job submit --working-dir . -- python jobs/prepare.py --config configs/flights.yaml
"""

import sys

from mlops_ray.verbs.job import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("prepare", sys.argv[1:]))
