"""Open Inference Protocol V2 as MLServer's types and codecs speak it, from an environment of MLServer's own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.serving.clients.conftest import Served

PYTHON = os.environ.get("MLSERVER_PYTHON")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PYTHON, reason="set MLSERVER_PYTHON to the python of an environment with `mlserver`"),
]


def test_mlservers_types_and_codecs_are_understood(binary: Served, plain: Served) -> None:
    assert PYTHON is not None
    script = str(Path(__file__).with_name("mlserver_client.py"))
    command = [PYTHON, script, binary.url, "small", plain.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    request = binary.logged().id
    assert found == {
        "server": "mlops-ray",
        "inputs": ["who", "at", "x", "n", "flag", "c", "d"],
        "by_frame": [0, 1],
        "id": "a-7",
        "by_column": [0, 1],
        "ids": [f"{request}:0", f"{request}:1"],
        "by_array": [0.2, 0.7],
        "error": "wrong datatype: input 'n': expected INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 for a "
        "column of int, got FP64",
    }
    logged = binary.logged()
    assert logged.times.tolist() == [1e9, 1e9]
    assert logged.columns["c"].tolist() == ["größer", ""]
