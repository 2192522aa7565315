"""Mistakes in `validation.expectations` are named with line, field and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_ray.config import load_project
from mlops_ray.errors import ConfigError

BASE = """\
project: tiny
task: binary
target: y
key: id
event_time: at
source: { kind: parquet, path: nowhere }
columns:
  - { name: id, dtype: string }
  - { name: at, dtype: timestamp }
  - { name: y, dtype: int }
  - { name: x, dtype: float }
  - { name: ok, dtype: bool }
features: { numeric: { columns: [x] } }
search: { candidates: [{ estimator: sklearn.linear_model:LogisticRegression }] }
validation:
  expectations:
"""


def load(tmp_path: Path, *lines: str) -> list[str]:
    """What is wrong with a project file with these expectations; the first one stands in line 17."""
    file = tmp_path / "p.yaml"
    file.write_text(BASE + "".join(f"    - {line}\n" for line in lines), encoding="utf-8")
    try:
        load_project(file, env={})
    except ConfigError as exc:
        return [problem.removeprefix(f"{file}:") for problem in exc.problems]
    return []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{ expect: betwen, column: x, min: 1 }", "17: validation.expectations.0: expect should be one of 'not_null'"),
        ("{ expect: betwen, column: x, min: 1 }", "got 'betwen'; did you mean 'between'?"),
        ("{ column: x }", "17: validation.expectations.0: `expect:` is missing; add it"),
        ("soon", "should be a block of fields; got 'soon'"),
        ("{ expect: between, column: x, mn: 1 }", "17: validation.expectations.0.mn: unknown field 'mn'; did you mean"),
        ("{ expect: between, column: x }", "give min, max or both"),
        ("{ expect: between, column: x, min: 2, max: 1 }", "min 2 is above max 1; swap them"),
        ("{ expect: between, column: at, min: 3 }", "3 is no time; write it like"),
        ("{ expect: between, column: at, min: '2014-01-01', max: '2013-01-01' }", "is after max 2013-01-01"),
        (
            "{ expect: between, column: id, min: 3 }",
            "column 'id' is string; this place takes float or int",
        ),
        ("{ expect: between, column: x, min: 'a' }", "'a' is not; write a number"),
        ("{ expect: not_null, column: xx }", "17: validation.expectations.0.column: 'xx' is not one of the columns"),
        ("{ expect: not_null, column: x, mostly: 1.5 }", "17: validation.expectations.0.mostly:"),
        ("{ expect: not_null, column: x, on_fail: shrug }", "17: validation.expectations.0.on_fail:"),
        ("{ expect: in_set, column: id, values: [1] }", "the column is string, 1 is not; put it in quotes"),
        ("{ expect: in_set, column: x, values: [a] }", "the column is float, 'a' is not; write a number"),
        ("{ expect: in_set, column: ok, values: [1] }", "the column is bool, 1 is not; write true or false"),
        ("{ expect: covers, column: at, values: [soon] }", "'soon' is no time"),
        ("{ expect: covers, column: id, values: [red, blue, red] }", "values.2: 'red' stands twice; take it out"),
        ("{ expect: covers, column: x, values: [1, 1.0] }", "values.1: 1.0 stands twice"),
        ("{ expect: covers, column: at, values: ['2013-01-01', '2013-01-01T00:00:00Z'] }", "stands twice"),
        ("{ expect: covers, column: x, values: [[1], [2]] }", "validation.expectations.0.values.0"),
        ("{ expect: matches, column: id, pattern: '(' }", "not a regular expression"),
        (
            "{ expect: row, row: 'x > zz' }",
            "17: validation.expectations.0.row: zz at position 5 is not",
        ),
        ("{ expect: row, row: 'x + 1' }", "is a number; write a condition"),
        ("{ expect: not_null, column: x, when: 'x > ' }", "17: validation.expectations.0.when: not an expression"),
        (
            "{ expect: column_pair, columns: [x, id], op: < }",
            "'x' is a number, 'id' is a string; they do not compare",
        ),
        ("{ expect: column_pair, columns: [x, zz], op: < }", "columns.1: 'zz' is not one of the columns"),
        ("{ expect: column_pair, columns: [x], op: < }", "17: validation.expectations.0.columns:"),
        ("{ expect: unique, columns: [idd] }", "did you mean 'id'?"),
        ("{ expect: length_between, column: x, max: 3 }", "this place takes string"),
        ("{ expect: distribution, column: id, distance: ks, max: 1 }", "ks is of numbers; take psi, js or linf"),
        ("{ expect: distribution, column: at, max: 1 }", "column 'at' is timestamp; this place takes"),
        ("{ expect: row_count }", "give min, max or both"),
        ("{ expect: not_null, column: x, id: 'a,b' }", "17: validation.expectations.0.id:"),
    ],
)
def test_a_mistake(tmp_path, line, says):
    problems = load(tmp_path, line)
    assert any(says in problem for problem in problems), problems
    assert all(problem[:2] in ("15", "16", "17") for problem in problems), problems
    assert not any("tagged" in problem for problem in problems)


def test_two_expectations_of_one_name(tmp_path):
    same = "{ expect: between, column: x, min: 1 }"
    (problem,) = load(tmp_path, same, same)
    assert "expectation 1 of the list is called 'x.between' too; give one of them an `id:`" in problem
    assert load(tmp_path, same, same.replace(" }", ", when: ok, id: of the good }")) == []


def test_every_mistake_at_once(tmp_path):
    lines = ("{ expect: row, row: 'x >' }", "{ expect: mean, column: id, min: 0 }", "{ expect: nothing }")
    problems = load(tmp_path, *lines)
    assert [problem.split(":")[0] for problem in problems] == ["17", "18", "19"]


def test_names_of_expectations(tmp_path):
    file = tmp_path / "p.yaml"
    lines = [
        "{ expect: mean, column: x, min: 0 }",
        "{ expect: unique, columns: [id, at] }",
        "{ expect: quantile, column: x, q: 0.9, max: 3 }",
        "{ expect: row, row: 'min(x, y) > 0' }",
        "{ expect: row_count, min: 3, id: enough rows }",
        "{ expect: no_leakage }",
    ]
    file.write_text(BASE + "".join(f"    - {line}\n" for line in lines), encoding="utf-8")
    names = [expectation.name for expectation in load_project(file, env={}).validation.expectations]
    assert names == ["x.mean", "id+at.unique", "x.quantile 0.9", "row: min(x y) > 0", "enough rows", "no_leakage"]
