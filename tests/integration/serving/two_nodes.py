"""Two nodes, a collector on each: a watermark waits for both, for a dead node nobody does, and a new one is found."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from mlops_ray.cluster.on_ray import NAMESPACE
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.log.on_collector import alive_nodes
from mlops_ray.serving.places import spool_folder
from mlops_ray.serving.records import Watermark
from mlops_ray.serving.spool.capture import Capture
from tests.fakes import eventually
from tests.integration.serving.test_collectors import Known, World
from tests.spooling import scored


def main(root: Path) -> None:
    on_collectors.Collector = Known  # type: ignore[misc]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        world = World(root, "collected")
        (first,) = alive_nodes()
        assert len(world.ensure()) == 1
        joined = cluster.add_node(num_cpus=1)
        eventually(lambda: len(alive_nodes()) == 2)
        assert len(world.ensure()) == 2, "a node that joined has no collector"
        (second,) = set(alive_nodes()) - {first}
        one, two = (Capture(world.project, spool_folder(world.project, node), None) for node in (first, second))
        eventually(lambda: len(on_collectors.collectors("collected")) == 2)
        two.append(scored("a", 2, times=np.full(2, 9e8), repeatable=True))
        one.append(scored("a", 2, times=np.full(2, 9e8), repeatable=True))  # the client tried again elsewhere
        one.append(scored("b", times=np.full(1, 9e8)))
        one.append(Watermark(2e9, 1e9))
        on_collectors.flush("collected")
        assert world.rows() == Counter(["a:0", "a:1", "b:0"]), world.rows()
        assert world.watermark() == 1e9

        two.append(scored("late", times=np.full(1, 1.05e9)))
        cluster.remove_node(joined, allow_graceful=False)
        one.append(scored("c", times=np.full(1, 1.05e9)))
        one.append(Watermark(2e9, 1.1e9))
        eventually(lambda: alive_nodes() == [first], within_s=60)
        began = time.monotonic()
        on_collectors.flush("collected")
        assert world.watermark() == 1.1e9, "a dead node held decision time up"
        assert time.monotonic() - began < 30
        # On this one machine the dead node's spool is within reach: nobody owns it, so it is taken along.
        assert world.rows() == Counter(["a:0", "a:1", "b:0", "c:0", "late:0"]), world.rows()
        for each in (one, two):
            each.close()
        world.close()
        print("all well")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
