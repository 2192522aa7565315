"""MLflow's scoring protocol as MLflow's own client and its readers speak it, over a real connection."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from tests import fakes
from tests.unit.serving.clients.conftest import STABLE, WARM, Served

with warnings.catch_warnings():  # MLflow looks at its own classes when imported, and warns of them
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

ROWS = [fakes.row(), fakes.row("k2", n=7, c="größer")]
FRAME = pd.DataFrame(ROWS)


def client_of(served: Served) -> ScoringServerClient:
    """MLflow's client takes host and port, and puts the path behind them."""
    host, _, rest = served.place.partition(":")
    return ScoringServerClient(host, rest)


@pytest.fixture
def client(binary: Served) -> ScoringServerClient:
    return client_of(binary)


def test_the_server_is_known(client: ScoringServerClient, binary: Served) -> None:
    client.ping()
    client.wait_server_ready(timeout=5)
    assert client.get_version() == version("mlflow")
    assert httpx.get(f"{binary.url}/health").status_code == 200


@pytest.mark.parametrize("frame", [FRAME, FRAME.assign(at=pd.to_datetime(FRAME["at"], unit="s"))])
def test_a_frame_is_scored_and_logged(client: ScoringServerClient, binary: Served, frame: pd.DataFrame) -> None:
    answer = client.invoke(frame)
    assert answer.get_predictions()[0].tolist() == [0, 1]
    assert answer["versions"] == [STABLE, STABLE]
    logged = binary.logged()
    assert answer["request_id"] == logged.id
    assert logged.keys == ("k1", "k2")
    assert logged.times.tolist() == [1e9, 1e9]
    assert logged.columns["c"].tolist() == ["red", "größer"]


def test_rows_and_columns_are_scored(client: ScoringServerClient) -> None:
    for data in (ROWS, {"instances": ROWS}, {"inputs": FRAME.to_dict("list")}, {"dataframe_records": ROWS}):
        sent = data if isinstance(data, list) else json.dumps(data)  # MLflow's client stumbles over a dict
        assert client.invoke(sent).get_predictions("ndarray").tolist() == [0, 1]


def test_an_array_without_names_is_the_features_in_their_order(every: dict[str, Served]) -> None:
    array = np.array([[0.5, 2, True, "red", "blue"]], dtype=object)
    assert client_of(every["numbers"]).invoke(array).get_predictions("ndarray").tolist() == [0.2]


@pytest.mark.parametrize(
    ("params", "predictions"),
    [
        ({"probabilities": True}, [[0.8, 0.2], [0.3, 0.7]]),
        ({"threshold": 0.1}, [1, 1]),
        ({"version": WARM}, [0, 1]),
        (None, [0, 1]),
    ],
)
def test_params_choose_the_answer(
    client: ScoringServerClient, params: dict[str, Any] | None, predictions: list[Any]
) -> None:
    answer = client.invoke(FRAME, params=params)
    assert np.array(answer["predictions"]) == pytest.approx(np.array(predictions))
    assert answer["versions"] == [WARM if params == {"version": WARM} else STABLE] * 2


def test_classes_are_predicted_by_name(every: dict[str, Served]) -> None:
    client = client_of(every["classes"])
    assert client.invoke(FRAME)["predictions"] == ["mittel", "low"]
    answer = client.invoke(FRAME, params={"probabilities": True})
    frame = pd.DataFrame(answer["predictions"], columns=answer["classes"])
    assert frame["mittel"].tolist() == pytest.approx([0.4, 0.15])


def test_csv_as_pandas_writes_it_is_scored(binary: Served) -> None:
    frame = FRAME.assign(x=[0.5, None], c=["blue, or\nred", None])
    sent = frame.to_csv(index=False)
    answer = httpx.post(f"{binary.url}/invocations", content=sent, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 200
    assert answer.json()["predictions"] == [0, 1]
    assert np.isnan(binary.logged().columns["x"]).tolist() == [False, True]
    assert binary.logged().columns["c"].tolist() == ["blue, or\nred", ""]


@pytest.mark.parametrize(
    ("data", "status", "code", "says"),
    [
        (FRAME.assign(n=[2.5, 7]), 422, "INVALID_PARAMETER_VALUE", "row 0, column 'n': expected int, got 2.5"),
        (FRAME.drop(columns="n"), 422, "INVALID_PARAMETER_VALUE", "column 'n' (int) is missing"),
        (FRAME.assign(x=np.nan), 400, "BAD_REQUEST", "send null for what is missing"),
        (
            json.dumps({"instances": ROWS, "inputs": ROWS}),
            422,
            "INVALID_PARAMETER_VALUE",
            "exactly one of dataframe_split",
        ),
    ],
    ids=["type", "missing", "nan", "shape"],
)
def test_a_mistake_reaches_the_client_in_words(
    client: ScoringServerClient, data: Any, status: int, code: str, says: str
) -> None:
    with pytest.raises(Exception, match=rf"error code {status}") as caught:
        client.invoke(data)
    assert says in str(caught.value)
    assert code in str(caught.value)


def test_an_error_is_a_problem_too(binary: Served) -> None:
    answer = httpx.post(f"{binary.url}/invocations", json={"instances": []})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == "/small/invocations"
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    wrong = httpx.get(f"{binary.url}/invocations")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
