"""MLServer's custom runtime for the pipeline or its graph: runs in MLServer's environment, which has none of ours."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class _Rows(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        columns = {each.name: list(each.data.root) for each in payload.inputs}
        scores = self.scores(columns)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probability", scores)])


class Pipeline(_Rows):
    """scikit-learn's `predict_proba` on a DataFrame."""

    async def load(self) -> bool:
        import joblib

        self._pipeline = joblib.load(self.settings.parameters.uri)
        self._categories = self.settings.parameters.extra["categories"]
        return True

    def scores(self, columns):
        import pandas as pd

        # None must become NaN, and a column of nothing but None has no dtype of its own.
        kinds = {name: "float64" for name in columns if name not in self._categories}
        return self._pipeline.predict_proba(pd.DataFrame(columns).astype(kinds))[:, 1]


class Graph(_Rows):
    """The same pipeline as an ONNX graph."""

    async def load(self) -> bool:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._categories = self.settings.parameters.extra["categories"]
        return True

    def scores(self, columns):
        numbers = [values for name, values in columns.items() if name not in self._categories]
        feed = {
            "numeric": np.array(numbers, dtype=np.float32).T,  # None becomes NaN
            "categorical": np.array([columns[name] for name in self._categories], dtype=object).T,
        }
        return self._session.run(["probabilities"], feed)[0][:, 1]
