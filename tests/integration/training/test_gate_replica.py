"""The packaged version in a process of its own, on a real Ray: fresh workers, and replicas of a real Serve."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray import serve
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_ray.config import Features, InfrastructureGate
from mlops_ray.data import profile
from mlops_ray.data.features import statistics, transformer
from mlops_ray.training.artifact import lock as environments
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.gates import on_replica
from mlops_ray.training.gates.on_replica import infrastructure
from mlops_ray.training.gates.verdict import CheckResult, Verdict
from tests.estimators import Dies, Faithful, Forgets, Hangs

pytestmark = pytest.mark.ray

FEATURES = Features.model_validate({"numeric": {"columns": ["a", "b"]}, "categorical": {"columns": ["c"]}})
DAY_S = 86_400.0


Saved = tuple[Path, str, model.Model]
OURS = tuple(f"{c.__module__}.{c.__qualname__}" for c in (Dies, Hangs, Forgets, Faithful))


def save(folder: Path, estimator: LogisticRegression) -> Saved:
    rng = np.random.default_rng(0)
    n = 600
    table = pa.table({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.choice(["x", "y"], n)})
    columns = statistics.to_columns(FEATURES, table)
    y = (columns["a"] + rng.normal(size=n) > 0).astype(np.int64)
    counted = statistics.fold(FEATURES, table)
    fitted = transformer.transformer(FEATURES, counted)
    matrix = fitted.transform(statistics.to_frame(FEATURES, columns))
    pipeline = Pipeline([("features", fitted), ("model", estimator.fit(matrix, y))])
    edges = transformer.bins(FEATURES, counted)
    day = (0.0, profile.fold(edges, columns, np.linspace(0, 1, n)))
    trusting = FEATURES.model_copy(update={"trusted_types": OURS})
    sha256 = model.save(
        folder,
        pipeline,
        task="binary",
        classes=(0, 1),
        features=trusting,
        target="y",
        reference=Reference(edges, DAY_S, (day,), ((0.0, n, 1.0, 1.0),)),
        holdout=columns,
        lock=environments.environment_lock(environments.distributions_of(pipeline)),
        recipe={},
    )
    return folder, sha256, model.load(folder, sha256, trusted=OURS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("artifacts")
    kinds = (LogisticRegression, Dies, Hangs, Forgets, Faithful)
    return {kind.__name__: save(root / kind.__name__, kind()) for kind in kinds}


def asked(one: Saved, timeout_s: float = 120.0, **gate: Any) -> dict[str, CheckResult]:
    folder, sha256, loaded = one
    checks = infrastructure(
        InfrastructureGate(**gate), str(folder), sha256, loaded.lock, loaded.engine, trusted=OURS, timeout_s=timeout_s
    )
    return {check.name.removeprefix("infrastructure."): check for check in checks}


def test_a_good_version_passes_in_a_fresh_worker(ray_local: None, saved: dict[str, Saved]) -> None:
    for kind, engine in (("LogisticRegression", "onnx"), ("Faithful", "sklearn")):
        found = asked(saved[kind], max_p99_ms=1000.0, max_mb=5.0)
        assert list(found) == ["environment", "loads", "latency", "size"]
        assert {check.verdict for check in found.values()} == {Verdict.PASS}, found
        assert found["environment"].evidence["engine"] == engine
        assert 0 < found["latency"].evidence["p50_ms"] <= found["latency"].evidence["p99_ms"]
        assert found["latency"].evidence["n"] >= 100
        folder = saved[kind][0]
        assert found["size"].evidence["mb"] == pytest.approx(
            sum(path.stat().st_size for path in folder.iterdir()) / 1024**2
        )


def test_each_probe_has_a_process_of_its_own(ray_local: None) -> None:
    @ray.remote(num_cpus=0, max_calls=1)
    def process() -> int:
        return os.getpid()

    first, second = (ray.get(process.options(runtime_env=on_replica._fresh()).remote()) for _ in range(2))
    assert first != second
    assert os.getpid() not in (first, second)


def test_budgets_that_are_too_small_refuse(ray_local: None, saved: dict[str, Saved]) -> None:
    found = asked(saved["Faithful"], max_p99_ms=1e-4, max_mb=1e-4)
    assert found["loads"].verdict is Verdict.PASS
    assert found["latency"].verdict is Verdict.FAIL
    assert found["size"].verdict is Verdict.FAIL
    assert "at most 0.0001 ms is asked" in found["latency"].detail


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize(
    ("kind", "says"), [("Dies", "ends its process"), ("Hangs", "does not answer"), ("Forgets", "golden answers differ")]
)
def test_a_version_that_dies_hangs_or_forgets_is_refused_and_leaves_nothing(
    ray_local: None, saved: dict[str, Saved], kind: str, says: str, replica: bool
) -> None:
    found = asked(saved[kind], timeout_s=12.0 if kind == "Hangs" else 120.0, replica=replica)
    assert list(found) == ["loads"]
    assert found["loads"].verdict is Verdict.FAIL
    assert says in found["loads"].detail
    assert not on_replica._serve_runs()
    assert ray.get(ray.put(1)) == 1


def test_files_that_are_altered_or_gone_are_refused(ray_local: None, saved: dict[str, Saved], tmp_path: Path) -> None:
    folder, sha256, loaded = saved["LogisticRegression"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"another graph")
    for address in (copy, tmp_path / "nowhere"):
        (only,) = infrastructure(InfrastructureGate(), str(address), sha256, loaded.lock, loaded.engine)
        assert only.verdict is Verdict.FAIL
        assert "ArtifactRefused" in only.detail


def test_another_release_of_scikit_learn_is_refused_where_it_serves(ray_local: None, saved: dict[str, Saved]) -> None:
    for kind, verdict in (("Faithful", Verdict.FAIL), ("LogisticRegression", Verdict.PASS)):
        folder, sha256, loaded = saved[kind]
        lock = {**loaded.lock, "scikit-learn": "1.2.0"}
        found = infrastructure(InfrastructureGate(), str(folder), sha256, lock, loaded.engine, trusted=OURS)
        assert found[0].name == "infrastructure.environment"
        assert found[0].verdict is verdict
        assert "scikit-learn 1.2.0 recorded" in found[0].detail


def application() -> serve.Application:
    """Somebody else's."""

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def who(self) -> int:
            return os.getpid()

    return Other.bind()


@pytest.fixture
def other(ray_local: None) -> Iterator[Any]:
    serve.start(proxy_location="Disabled")
    yield serve.run(application(), name="other", route_prefix=None)
    serve.shutdown()


def test_a_replica_without_serve_and_beside_another_application(
    saved: dict[str, Saved], ray_local: None, request: pytest.FixtureRequest
) -> None:
    assert not on_replica._serve_runs()
    alone = asked(saved["LogisticRegression"], replica=True)
    assert {check.verdict for check in alone.values()} == {Verdict.PASS}, alone
    assert "a replica of Ray Serve" in alone["loads"].detail
    assert not on_replica._serve_runs()
    handle = request.getfixturevalue("other")
    before = handle.who.remote().result(timeout_s=60)
    beside = asked(saved["LogisticRegression"], replica=True)
    assert {check.verdict for check in beside.values()} == {Verdict.PASS}, beside
    assert set(serve.status().applications) == {"other"}
    serve.run(application(), name=f"{on_replica._PREFIX}of-a-killed-run", route_prefix=None)
    on_replica._sweep(time.time())
    assert set(serve.status().applications) == {"other", f"{on_replica._PREFIX}of-a-killed-run"}
    on_replica._sweep(time.time() + 2 * on_replica._STALE_S)
    assert set(serve.status().applications) == {"other"}
    assert handle.who.remote().result(timeout_s=60) == before
