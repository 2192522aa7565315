"""Answers of an exported version: `python predict.py rows.json`, or `python predict.py --serve`.

This file is copied as it stands into an exported folder. Beside `model.onnx` it needs NumPy and ONNX Runtime; beside an
`artifact/` folder (versions that derive columns, or that scikit-learn serves) it needs the package mlops_ray.

Rows are JSON: a list of objects, or {"rows": [...]}, with the inputs that signature.json names; a missing value is
null. Times are ISO 8601 texts (UTC where they name no zone) or seconds since 1970.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-5
MAX_BODY = 16 << 20
MAX_ROWS = 10_000
FORM = 'JSON: a list of objects, or {"rows": [...]}, with the inputs that signature.json names'
Columns = dict[str, np.ndarray[Any, Any]]


class BadRows(ValueError):
    """Rows that the model cannot answer."""


def columns_of(rows: Any, inputs: list[dict[str, str]]) -> Columns:
    """Rows (JSON) as columns. Raises: BadRows naming row and input."""
    if isinstance(rows, dict):
        rows = rows.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadRows("send a list of at least one object, or {'rows': [...]}")
    if len(rows) > MAX_ROWS:
        raise BadRows(f"{len(rows)} rows; send at most {MAX_ROWS} at a time")
    found: Columns = {}
    for each in inputs:
        name, kind = each["name"], each["kind"]
        missing = next((i for i, row in enumerate(rows) if name not in row), None)
        if missing is not None:
            raise BadRows(f"row {missing}: {name!r} is missing; send null where there is no value")
        cells = [_cell(row[name], kind, f"row {i}: {name!r}") for i, row in enumerate(rows)]
        dtypes: dict[str, Any] = {"number": np.float32, "time": np.float64, "string": object}
        found[name] = np.array(cells, dtype=dtypes[kind])
    return found


def _cell(value: Any, kind: str, where: str) -> Any:
    if value is None:
        return "" if kind == "string" else math.nan
    if kind == "string":
        if not isinstance(value, str):
            raise BadRows(f"{where} must be a string or null")
        return value
    if kind == "time" and isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value)
        except ValueError as exc:
            raise BadRows(f"{where} is no time: {exc}") from exc
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 3.4e38:
        raise BadRows(f"{where} must be a number that float32 holds, or null")
    return float(value)


class Predictor:
    """The model of one exported folder."""

    def __init__(self, folder: Path) -> None:
        self.signature: dict[str, Any] = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
        graph = folder / "model.onnx"
        self._score = self._graph(graph.read_bytes()) if graph.is_file() else self._packaged(folder / "artifact")

    def score(self, columns: Columns) -> np.ndarray[Any, Any]:
        """Binary (n,) P(1); multiclass (n, classes); regression (n,)."""
        return self._score(columns)

    def answer(self, rows: Any) -> dict[str, Any]:
        """Scores of rows, and of a classifier which class they speak for."""
        scores = self.score(columns_of(rows, self.signature["inputs"]))
        if not np.isfinite(scores).all():
            raise BadRows("the model has no answer to a missing value that its training never saw")
        told: dict[str, Any] = {"scores": scores.tolist()}
        task, threshold = self.signature["task"], self.signature["threshold"]
        if task == "multiclass":
            told["answers"] = [self.signature["classes"][i] for i in scores.argmax(axis=1)]
        elif task == "binary" and threshold is not None:
            told["answers"] = (scores >= threshold).astype(int).tolist()
        return told

    def check(self, golden: Mapping[str, Any]) -> float:
        """Largest difference to the answers when the version was packaged. Raises: SystemExit when it is too large."""
        columns: Columns = {name: np.array(v, dtype=np.float32) for name, v in golden["numeric"].items()}
        columns |= {name: np.array(v, dtype=object) for name, v in golden["categorical"].items()}
        columns |= {name: np.array(v, dtype=np.float64) for name, v in golden["times"].items()}
        gap = float(np.abs(self.score(columns) - np.array(golden["scores"])).max() / golden["scale"])
        if not gap <= TOLERANCE:
            raise SystemExit(f"the golden answers differ by {gap:.2g}: this machine does not run the packaged model")
        return gap

    def _graph(self, graph: bytes) -> Callable[[Columns], np.ndarray[Any, Any]]:
        import onnxruntime as ort

        wanted = self.signature["sha256"]["model.onnx"]
        if hashlib.sha256(graph).hexdigest() != wanted:
            raise SystemExit(f"model.onnx was altered: its SHA-256 is not {wanted}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        regression = self.signature["task"] == "regression"
        output = "prediction" if regression else "probabilities"
        by_kind = {"number": "numeric", "string": "categorical"}

        def score(columns: Columns) -> np.ndarray[Any, Any]:
            feed = {}
            for kind, tensor in by_kind.items():
                names = [each["name"] for each in self.signature["inputs"] if each["kind"] == kind]
                if names:
                    feed[tensor] = np.stack([columns[name] for name in names], axis=1)
            found: np.ndarray[Any, Any] = session.run([output], feed)[0]
            return found if self.signature["task"] == "multiclass" else found[:, -1]

        return score

    def _packaged(self, folder: Path) -> Callable[[Columns], np.ndarray[Any, Any]]:
        from mlops_ray.training.artifact import model

        signature = self.signature
        return model.load(folder, signature["sha256"]["manifest.json"], trusted=signature["trusted_types"]).score


def server(predictor: Predictor, host: str, port: int) -> ThreadingHTTPServer:
    """POST /predict with rows; GET /healthz."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._tell(200, {"ok": True}) if self.path == "/healthz" else self._tell(404, {"error": "POST /predict"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/predict":
                self._tell(404, {"error": "POST /predict"})
            elif not length.isdecimal() or int(length) > MAX_BODY:
                self._tell(413, {"error": f"send at most {MAX_BODY} bytes, with their Content-Length"})
            else:
                try:
                    self._tell(200, predictor.answer(json.loads(self.rfile.read(int(length)))))
                except (ValueError, RecursionError) as exc:  # BadRows and JSON's errors among them
                    self._tell(422, {"error": str(exc)})

        def _tell(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """No line per request."""

    return ThreadingHTTPServer((host, port), Handler)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Answers of an exported model version.")
    parser.add_argument("rows", nargs="?", help="a file of JSON rows; standard input when left out, or -")
    parser.add_argument("--check", action="store_true", help="replay the golden requests, and end")
    parser.add_argument("--serve", action="store_true", help="answer POST /predict")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args(arguments)
    predictor = Predictor(HERE)
    if given.check or given.serve:
        gap = predictor.check(json.loads((HERE / "golden.json").read_text(encoding="utf-8")))
        print(json.dumps({"golden": gap}), flush=True)
    if given.serve:
        server(predictor, given.host, given.port).serve_forever()
    elif not given.check:
        print(json.dumps(_answered(predictor, given.rows)))


def _answered(predictor: Predictor, name: str | None) -> dict[str, Any]:
    """Answers to the rows of a file, or of standard input. Ends with a sentence and exit code 2 where they are none."""
    where = "standard input" if name in (None, "-") else str(name)
    try:
        text = sys.stdin.read() if name in (None, "-") else Path(str(name)).read_text(encoding="utf-8")
        if not text.strip():
            raise BadRows("holds nothing")
        return predictor.answer(json.loads(text))
    except OSError as exc:
        wrong = f"cannot be read ({exc.strerror})"
    except BadRows as exc:
        wrong = str(exc)
    except (ValueError, RecursionError) as exc:  # no UTF-8, no JSON
        wrong = f"is no JSON ({exc})"
    print(f"{where}: {wrong}; give {FORM}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
