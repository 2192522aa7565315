"""BentoML's services for the pipeline and its graph: runs in BentoML's environment, which has none of ours."""

import os

import bentoml
import numpy as np

_MODEL, _CATEGORIES = os.environ["BENCH_MODEL"], os.environ["BENCH_CATEGORIES"].split(",")


@bentoml.service(workers=1)
class Pipeline:
    """scikit-learn's `predict_proba` on a DataFrame."""

    def __init__(self) -> None:
        import joblib

        self._pipeline = joblib.load(_MODEL)

    @bentoml.api
    def predict(self, rows: list[dict]) -> list[float]:
        import pandas as pd

        kinds = {name: "float64" for name in rows[0] if name not in _CATEGORIES}
        return self._pipeline.predict_proba(pd.DataFrame(rows).astype(kinds))[:, 1].tolist()


@bentoml.service(workers=1)
class Graph:
    """The same pipeline as an ONNX graph. `async`: a thread for each request would cost more than the graph."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(_MODEL, options, providers=["CPUExecutionProvider"])

    @bentoml.api
    async def predict(self, rows: list[dict]) -> list[float]:
        numbers = [[value for name, value in row.items() if name not in _CATEGORIES] for row in rows]
        feed = {
            "numeric": np.array(numbers, dtype=np.float32),  # None becomes NaN
            "categorical": np.array([[row[name] for name in _CATEGORIES] for row in rows], dtype=object),
        }
        return self._session.run(["probabilities"], feed)[0][:, 1].tolist()
