from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlops_ray.config import Source, load_project
from mlops_ray.config.sources import hidden, is_secret, without_secrets
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.lineage import Code, is_prepared, lineage

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
    ("one", "two", "same"),
    [
        ({"url": "https://h/x?status=shipped"}, {"url": "https://h/x?status=open"}, False),
        ({"url": "https://h/x?a=1&token=one"}, {"url": "https://h/x?a=1&token=two"}, True),
        ({"url": "https://me:one@h/x?a=1"}, {"url": "https://me:two@h/x?a=1"}, True),
        (
            {"url": "https://h/x", "params": {"author": "one"}},
            {"url": "https://h/x", "params": {"author": "two"}},
            False,
        ),
        ({"url": "https://h/x", "params": {"key": "one"}}, {"url": "https://h/x", "params": {"key": "two"}}, True),
    ],
)
def test_the_config_hash_sees_queries_and_no_secrets(one: dict, two: dict, same: bool) -> None:
    def of(fields: dict) -> str:
        source = Source.model_validate({"kind": "http"} | fields)
        return str(lineage(PROJECT.model_copy(update={"source": source}), made_by={})["config_sha256"])

    assert (of(one) == of(two)) == same


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://me:geheim@db:5432/x?sslmode=require", "postgresql://***@db:5432/x?sslmode=require"),
        ("https://host/x?api_key=geheim&page=2", "https://host/x?api_key=***&page=2"),
        ("https://blob/x?sv=1&sig=geheim", "https://blob/x?sv=1&sig=***"),
        ("host=db password='ge heim' user=me", "host=db password=*** user=me"),
        ("s3://bucket/a@b/part.parquet", "s3://bucket/a@b/part.parquet"),
        ("http://h:8080/a@b", "http://h:8080/a@b"),
        ("http://h:8080?mail=a@b", "http://h:8080?mail=a@b"),
        ("postgresql://me:ge/heim?#x@db/x", "postgresql://***@db/x"),
        ("postgresql://me:ge@heim@db/x", "postgresql://***@db/x"),
        ('host=db password="ge heim" user=me', "host=db password=*** user=me"),
        ("PWD={ge;heim};Server=db", "PWD=***;Server=db"),
        ("AccountName=me;AccountKey=geheim==;x=1", "AccountName=me;AccountKey=***;x=1"),
        ("see url=https://h/x?token=geheim", "see url=https://h/x?token=***"),
        ("https://h/x?key=geheim&sort_key=id", "https://h/x?key=***&sort_key=id"),
        ("SELECT * FROM t WHERE sort_key = 'a' AND author='b'", "SELECT * FROM t WHERE sort_key = 'a' AND author='b'"),
        ({"shard_keys": ["id"], "key": "id", "account": "me"}, {"shard_keys": ["id"], "key": "id", "account": "me"}),
        ({"conn": "host=db password=geheim"}, {"conn": "host=db password=***"}),
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


def test_whole_words_make_a_name_a_secrets():
    secret = [
        *("password", "db_password", "PGPASSWORD", "sslpassword", "passwd", "db_pass", "pwd", "auth"),
        *("Authorization", "apiKey", "api_key", "x-api-key", "AWSAccessKeyId", "aws_secret_access_key"),
        *("AccountKey", "private_key", "sas", "sig", "X-Amz-Signature", "X-Amz-Credential", "token"),
        *("access_token", "authToken", "client_secret", "credentials"),
    ]
    plain = [
        *("author", "authors", "account", "account_id", "sort_key", "shard_keys", "key", "keys", "primary_key"),
        *("pass_rate", "compass", "bypass", "max_tokens", "tokenizer", "conn", "connections", "dsn", "sasquatch"),
        *("design", "signal", "passenger", "keyword", "monkey"),
    ]
    assert [name for name in secret if not is_secret(name)] == []
    assert [name for name in plain if is_secret(name)] == []


def test_messages_keep_what_is_no_secret():
    params = {"author": "file", "sort_key": "created", "account": "twice", "key": "hush-hush"}
    source = Source(kind="http", url="https://h/x", params=params)
    assert source.scrub("file created twice with hush-hush") == "file created twice with ***"
    assert source.public()["params"] == params | {"key": "***"}
    sql = Source(kind="sql", url="sqlite://", query="SELECT 1", options={"dsn": "host=h password='hush hush'"})
    assert sql.scrub("no hush hush here") == "no *** here"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("sqlite:////place/a.db", "sqlite:////place/a.db"),
        ("sqlite:///a.db?x=1", "sqlite:///a.db"),
        ("https://me:geheim@h/x?q=1#f", "https://h/x"),
        ("http://[bad/x", "http://[bad/x"),
        ("/a/b?c", "/a/b?c"),
    ],
)
def test_an_address_is_named_by_its_place(address, expected):
    assert without_secrets(address) == expected
