"""`mlops-ray log ...` from the command line to the files, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from mlops_ray import ledger
from mlops_ray.cli import app
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.content import row_hash
from mlops_ray.data.profile import Bins
from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.log.collecting import Drain
from mlops_ray.serving.log.forget import Register
from mlops_ray.serving.places import labels_uri, log_uri, spool_folder, values_uri
from mlops_ray.serving.records import Labelled, Scored
from mlops_ray.serving.spool import claims
from mlops_ray.serving.spool.capture import Capture, key_keeper
from mlops_ray.state import Store
from tests import fakes
from tests.logs import DAY_S, START, append, labels, predictions, values

KEY = "customer-17"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(folder: Path, **blocks: Any) -> tuple[Project, Store]:
    """A project file in `folder` with two predictions, a label, and a dataset version."""
    project = fakes.project(storage={"root": str(folder / "root")}, **blocks)
    body = project.model_dump(mode="json", exclude_unset=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    (folder / "root").mkdir()
    store = Store.open(project.storage.state)
    secret = store.run(lambda tx: claims.secret(tx, "small"))
    keep = key_keeper(project, secret) or str
    append(log_uri(project), predictions(project, "r1", [keep(KEY), keep("other")], at=START), 0)
    append(labels_uri(project), labels(project, ["r1:0"], [1.0], at=START + DAY_S), 0)
    rows = pa.table({"who": [KEY, "other"], "x": [1.0, 2.0]})
    uri, content = project.storage.path("data", "small"), row_hash(rows).hex()
    lake.commit(uri, [lake.write_file(uri, "files-a/part-0.parquet", rows)], rows.schema, content, {})
    return project, store


def called(*args: str, code: int = 0, config: str = "small.yaml") -> Any:
    done = CliRunner().invoke(app, ["log", args[0], "-c", config, *args[1:]])
    if done.exit_code != code:
        raise AssertionError(f"{done.exit_code}: {done.output}{done.exception!r}")
    return json.loads(done.stdout) if "--json" in args else done.stdout


def test_query_tells_people_and_machines(folder: Path) -> None:
    built(folder)
    (row,) = called("query", "--key", KEY, "--labels", "--json")["predictions"]
    assert (row["prediction_id"], row["label"]) == ("r1:0", 1.0)
    assert [label["label"] for label in row["labels"]] == [1.0]
    shown = called("query")
    assert KEY in shown
    assert "v1" in shown
    assert "no such prediction" in called("query", "--id", "nobody:0")
    assert "is no day" in CliRunner().invoke(app, ["log", "query", "-c", "small.yaml", "--since", "May"]).output


def test_query_shows_business_numbers_with_the_labels(folder: Path) -> None:
    project, _ = built(folder)
    append(values_uri(project), values(["r1:0"], "revenue", [12.5], at=START + DAY_S), 0)
    (row,) = called("query", "--key", KEY, "--labels", "--json")["predictions"]
    assert [(told["name"], told["value"]) for told in row["values"]] == [("revenue", 12.5)]
    assert "revenue 12.5" in called("query", "--labels")


def test_export_writes_a_file(folder: Path) -> None:
    built(folder)
    assert called("export", "-o", "out.csv", "--columns", "key,label", "--json")["rows"] == 2
    assert (folder / "out.csv").read_text() == f'"key","label"\n"{KEY}",1\n"other",\n'


def test_forget_takes_the_key_out_and_says_so_everywhere(folder: Path) -> None:
    _, store = built(folder)
    assert called("forget", "--key", KEY, "--dry-run", "--json")["rows"]["predictions"] == 1
    result = called("forget", "--key", KEY, "--why", "letter of 3 May", "--yes", "--json")
    assert result["proven"]
    assert {t: r["rows"] for t, r in result["removed"].items()} == {
        "labels": 1,
        "predictions": 1,
        "dataset versions": 1,
        "quarantine": 0,
    }
    assert "not up" in result["spools"][0]
    assert any("source" in said for said in result["unreached"])
    with store.read() as tx:
        (entry,) = ledger.entries(tx, "small")
        assert ledger.verify(tx, "small").ok
    assert (entry.kind, entry.subject, entry.why) == ("forgotten", result["order"], "letter of 3 May")
    assert KEY not in json.dumps(entry.evidence)
    assert entry.evidence["removed"]["dataset versions"] == {"rows": 1, "files": 1, "versions": [1]}
    listed = CliRunner().invoke(app, ["data", "list", "-c", "small.yaml"]).stdout
    assert "(redacted)" in listed
    shown = CliRunner().invoke(app, ["data", "show", "-c", "small.yaml", "1"]).stdout
    assert "1 rows were forgotten, its content was" in " ".join(shown.split())
    assert called("query", "--json")["predictions"][0]["key"] == "other"
    assert all(KEY.encode() not in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_forget_asks_first_and_takes_no_reason_that_tells(folder: Path) -> None:
    project, _ = built(folder)
    done = CliRunner().invoke(app, ["log", "forget", "-c", "small.yaml", "--key", KEY], input="n\n")
    assert done.exit_code == 1
    assert lake.dataset(project.storage.path("data", "small"), 1).redacted == ""
    done = CliRunner().invoke(
        app, ["log", "forget", "-c", "small.yaml", "--key", KEY, "--why", f"{KEY} wrote", "--yes"]
    )
    assert done.exception is not None
    assert "it names a key, and the ledger keeps every word" in str(done.exception)
    assert CliRunner().invoke(app, ["log", "forget", "-c", "small.yaml", "--yes"]).exit_code == 2


def test_several_keys_from_a_file_are_one_order(folder: Path) -> None:
    built(folder)
    (folder / "keys.txt").write_text(f"{KEY}\n\nother\n", encoding="utf-8")
    result = called("forget", "--keys-file", "keys.txt", "--yes", "--json")
    assert result["keys"] == 2
    assert result["removed"]["predictions"]["rows"] == 2
    assert called("query", "--json")["predictions"] == []


def test_a_key_that_capture_hashes_is_found_by_its_hash(folder: Path) -> None:
    project, _ = built(folder, capture={"hash": ["who"]})
    assert KEY not in str(lake.scan(log_uri(project), "0", "9", ["key"]).to_pylist())
    assert [r["prediction_id"] for r in called("query", "--key", KEY, "--json")["predictions"]] == ["r1:0"]
    result = called("forget", "--key", KEY, "--yes", "--json")
    assert result["removed"]["predictions"]["rows"] == 1
    assert result["removed"]["dataset versions"]["rows"] == 1


def scored(request: str, keys: list[str], at: float) -> Scored:
    n = len(keys)
    columns: dict[str, Any] = {name: np.full(n, 0.5, np.float32) for name in ("x", "n", "flag")}
    columns |= {name: np.array(["red"] * n, dtype=object) for name in ("c", "d")}
    return Scored(request, at, tuple(keys), np.full(n, at), columns, 1, np.full(n, 0.5), 10.0)


def test_what_a_spool_still_held_is_sieved_when_its_collector_comes(folder: Path) -> None:
    """The order finds it there and is not closed; given again, it is."""
    project, store = built(folder)
    spool = spool_folder(project, "node")
    capture = Capture(project, spool, None)
    capture.append(scored("late", [KEY, "third"], START + 60))
    capture.append(Labelled(START + 70, Labels(("r1:0", "r1:1"), ("", ""), np.array([0.0, 1.0]), np.full(2, START))))
    capture.close()
    assert "LEFT in spool" in called("forget", "--key", KEY, "--yes", code=1)
    with store.read() as tx:
        assert ledger.entries(tx, "small") == []
    pushed: list[dict[str, Any]] = []
    drain = Drain(project, spool, store, lambda p: pushed.append(dict(p)) is None, lambda: Bins({}, {}), lambda: 2e9)
    assert drain.run()[1]
    assert sorted(lake.scan(log_uri(project), "0", "9", ["key"])["key"].to_pylist()) == ["other", "third"]
    assert lake.scan(labels_uri(project), "0", "9", ["prediction_id"])["prediction_id"].to_pylist() == ["r1:1"]
    late = labels(project, ["late:0", "late:1"], [1.0, 0.0], at=START + 5 * DAY_S)
    kept = Register(project, lambda: store.run(lambda tx: claims.secret(tx, "small"))).now().kept(late)
    assert kept["prediction_id"].to_pylist() == ["late:1"], "its row never was in the log, and its label does not come"
    assert [n for p in pushed for _, _, profile in p["profiles"] for n in [profile["n"]]] == [1]
    again = called("forget", "--key", KEY, "--yes", "--json")
    assert again["proven"]
    assert again["removed"]["predictions"]["rows"] == 1, "counts of an order that was taken up go on"
    with store.read() as tx:
        (entry,) = ledger.entries(tx, "small")
    assert entry.subject == again["order"]
