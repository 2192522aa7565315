"""A client made of MLServer's own types and codecs; runs in an environment that has MLServer, and nothing of ours.

Prints one JSON object: what the server answered, as MLServer understands it.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pandas as pd
from mlserver.codecs import DatetimeCodec, NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec
from mlserver.types import (
    InferenceErrorResponse,
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataServerResponse,
    RequestOutput,
)


def asked(url: str, request: InferenceRequest | None = None) -> bytes:
    body = None if request is None else request.model_dump_json().encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as exc:
        return bytes(exc.read())


def columns() -> InferenceRequest:
    """Two rows, each column by the codec that suits it."""
    return InferenceRequest(
        id="a-7",
        inputs=[
            StringCodec.encode_input("who", ["k1", "k2"]),
            DatetimeCodec.encode_input("at", ["2001-09-09T01:46:40Z"] * 2),
            NumpyCodec.encode_input("x", np.array([[0.5], [np.nan]])),
            NumpyCodec.encode_input("n", np.array([2, 7])),
            NumpyCodec.encode_input("flag", np.array([True, False])),
            StringCodec.encode_input("c", ["größer", ""]),
            StringCodec.encode_input("d", ["blue", "green"]),
        ],
        outputs=[RequestOutput(name="label"), RequestOutput(name="prediction_id")],
    )


def main(url: str, name: str, numbers: str) -> dict[str, Any]:
    infer = f"{url}/v2/models/{name}/infer"
    frame = pd.DataFrame({"x": [0.5, np.nan], "n": [2, 7], "flag": [True, False]})
    for column, values in {"who": ["k1", "k2"], "c": ["red", "blue"], "d": ["green", "grey"]}.items():
        frame[column] = pd.Series(values, dtype=object)  # MLServer 1.7 does not know pandas 3's own dtype of texts
    by_frame = InferenceResponse.model_validate_json(asked(infer, PandasCodec.encode_request(frame)))
    by_column = InferenceResponse.model_validate_json(asked(infer, columns()))
    array = NumpyRequestCodec.encode_request(np.array([[2, 2], [5, 7]]))
    by_array = InferenceResponse.model_validate_json(asked(f"{numbers}/v2/models/plain/infer", array))
    wrong = asked(infer, PandasCodec.encode_request(frame.assign(n=[2.5, 7.0])))
    return {
        "server": MetadataServerResponse.model_validate_json(asked(f"{url}/v2")).name,
        "inputs": [i.name for i in MetadataModelResponse.model_validate_json(asked(f"{url}/v2/models/{name}")).inputs],
        "by_frame": PandasCodec.decode_response(by_frame)["label"].tolist(),
        "id": by_column.id,
        "by_column": NumpyCodec.decode_output(by_column.outputs[0]).tolist(),
        "ids": StringCodec.decode_output(by_column.outputs[1]),
        "by_array": NumpyCodec.decode_output(by_array.outputs[0]).tolist(),
        "error": InferenceErrorResponse.model_validate_json(wrong).error,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
