from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlops_ray.config import load_project
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.lineage import Code, hidden, is_prepared, lineage

PROJECT = load_project(Path(__file__).parents[3] / "configs/quickstart.yaml", env={})


def test_a_commit_says_who_made_it_of_what_with_which_code():
    parent = DatasetVersion("/t", 3, "abc", 10, 100, 0.0, {})
    found = lineage(
        PROJECT,
        made_by={"verb": "retrain", "decision": "q-1"},
        uris=["/log"],
        code=Code("f" * 40, True),
        parents=[parent],
    )
    assert json.loads(json.dumps(found)) == found
    assert found["parents"] == [{"version": 3, "content_hash": "abc"}]
    assert found["code"] == {"commit": "f" * 40, "dirty": True}
    assert found["source"]["function"] == "mlops_ray.demo.quickstart:samples"
    assert not is_prepared(found)
    assert is_prepared(lineage(PROJECT, made_by={"verb": "prepare"}))
    assert not is_prepared({"window": [0, 1]})


def test_the_config_hash_follows_what_shapes_rows_and_nothing_else():
    def of(**update: object) -> str:
        return str(lineage(PROJECT.model_copy(update=update), made_by={})["config_sha256"])

    secret = PROJECT.source.model_copy(update={"options": {"password": "one"}})
    rotated = PROJECT.source.model_copy(update={"options": {"password": "two"}})
    other = PROJECT.source.model_copy(update={"options": {"n": 1}})
    assert of() == of(seed=9)
    assert of(source=secret) == of(source=rotated) != of()
    assert of(source=other) != of()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://me:geheim@db:5432/x?sslmode=require", "postgresql://***@db:5432/x?sslmode=require"),
        ("https://host/x?api_key=geheim&page=2", "https://host/x?api_key=***&page=2"),
        ("https://blob/x?sv=1&sig=geheim", "https://blob/x?sv=1&sig=***"),
        ("host=db password='ge heim' user=me", "host=db password=*** user=me"),
        ("s3://bucket/a@b/part.parquet", "s3://bucket/a@b/part.parquet"),
        ("SELECT key, tokens FROM t WHERE x = 1", "SELECT key, tokens FROM t WHERE x = 1"),
        ({"aws_secret_access_key": "geheim", "region": "eu"}, {"aws_secret_access_key": "***", "region": "eu"}),
        ({"headers": [{"Authorization": "Bearer geheim"}], "password": None}, None),
        (3, 3),
    ],
)
def test_secrets_stay_out(given, expected):
    found = hidden(given)
    assert "heim" not in json.dumps(found)
    if expected is not None:
        assert found == expected
