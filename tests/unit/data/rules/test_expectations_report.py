"""The page of a validation, with cells that mean harm."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest

from mlops_ray.config import Project
from mlops_ray.data.rules.expectations import Report, check
from mlops_ray.data.rules.facts import Facts
from mlops_ray.data.rules.findings import conclude
from mlops_ray.data.rules.report import render

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>'
NAME = 'a<b>"&'


def project_with(*expectations: dict[str, Any]) -> Project:
    return Project.model_validate(
        {
            "project": "tiny",
            "task": "binary",
            "target": "y",
            "key": "id",
            "event_time": "at",
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "id", "dtype": "string", "pattern": r"k\d+"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "y", "dtype": "int", "nullable": True},
                {"name": NAME, "dtype": "float", "nullable": True},
                {"name": "c", "dtype": "string", "nullable": True},
            ],
            "validation": {"expectations": expectations, "max_bad_share": 1, "min_rows": 1},
            "features": {"numeric": {"columns": [NAME]}, "categorical": {"columns": ["c"]}},
            "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        }
    )


PROJECT = project_with(
    {"expect": "in_set", "column": "c", "values": ["b", EVIL], "on_fail": "warn"},
    {"expect": "not_in_set", "column": "c", "values": ["a"]},
    {"expect": "mean", "column": NAME, "min": 0},
    {"expect": "distribution", "column": NAME, "max": 1},
    {"expect": "distinct_count", "column": "c", "max": 10},
    {"expect": "row", "row": f"col('{NAME}') < 1e9", "id": "<i>"},
    {"expect": "unique", "columns": ["id"]},
)


def rows(cells: list[object], numbers: list[object] | None = None) -> pa.Table:
    n = len(cells)
    return pa.table(
        {
            "id": [f"k{i}" for i in range(n)],
            "at": ["2013-01-01"] * n,
            "y": [1] * n,
            NAME: pa.array(numbers or [1.5] * n, pa.float64()),
            "c": pa.array(cells, pa.string()),
        }
    )


class Tags(HTMLParser):
    """Tags in the order they open, and that each closes."""

    EMPTY = frozenset({"meta", "br", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert not self.opened, self.opened

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(project: Project, table: pa.Table, previous: Facts | None = None) -> tuple[str, Tags]:
    checked = check(project, table)
    findings = conclude(project, checked.report, checked.facts, previous=previous, now=0)
    json.dumps([finding.to_dict() for finding in findings])
    page = render(project, checked.report, findings, checked.facts, previous=previous)
    page.encode()
    return page, Tags(page)


HOSTILE = [EVIL, "a", "two\nlines\r\n\x00\x1b[31m", "x" * 1_000_000, "\u202eback", "", None, "'\"", "{{7*7}}", "a,b"]


def test_hostile_cells_stay_text():
    page, tags = page_of(PROJECT, rows(HOSTILE), check(PROJECT, rows([EVIL, None])).facts)
    assert {tag for tag, _ in tags.found} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "b", "div", "span"),
        *("table", "tr", "th", "td", "code", "br", "svg", "rect", "figure", "figcaption"),
    }
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in tags.found for name in attrs)
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "\x00" not in page
    assert "\x1b" not in page
    assert len(page) < 100_000
    assert "&lt;script&gt;" in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (rows([]), "The source has no rows."),
        (rows([None, None], [None, None]), "0 in quarantine"),
        (rows(["b", "b"], [float("inf"), float("nan")]), "in quarantine"),
        (rows(["b"] * 3, [-1e308, 0.0, 1e308]), "median"),
        (rows(["b"] * 3, [2.5] * 3), "median 2.5"),
    ],
)
def test_pages_of_odd_tables(table, says):
    page, _ = page_of(PROJECT, table)
    assert says in page.replace("</b>", " ")


def test_the_page_says_what_became_of_the_run():
    good, _ = page_of(PROJECT, rows(["b", "b"]))
    assert "It lets the run go on." in good
    bad, _ = page_of(PROJECT, rows(["a", "b"]))
    assert "It stops the run: 1 expectation broken." in bad
    assert "k0: a" in bad
    strict = project_with()
    refused = strict.model_copy(update={"validation": strict.validation.model_copy(update={"max_bad_share": 0.0})})
    checked = check(refused, rows(["a", "b"]).set_column(0, "id", pa.array(["k0", "wrong"])))
    page = render(refused, checked.report, (), checked.facts)
    assert "stops the run: 50.00 % of the rows are bad" in page
    assert "id.pattern" in page
    assert "only 0 rows are good" in render(refused, Report(), (), Facts())


def test_quarantine_keeps_hostile_rows_readable():
    checked = check(PROJECT, rows(HOSTILE))
    kept = [json.loads(row)["c"] for row in checked.bad["row"].to_pylist()]
    assert kept == [cell for cell in HOSTILE if cell is not None and cell != EVIL]
    assert checked.report.n_read == checked.report.n_kept + checked.report.n_quarantined == len(HOSTILE)
    assert all(len(text) <= 80 for found in checked.report.examples.values() for text in found)


def test_a_cell_that_cannot_be_cast_broke_one_rule():
    checked = check(
        project_with({"expect": "not_null", "column": "y"}),
        rows(["a"] * 3).set_column(2, "y", pa.array(["1", "one", None])),
    )
    assert checked.report.broken == {"y.dtype": 1, "y.not_null": 1}
    assert checked.bad["rules"].to_pylist() == [["y.dtype"], ["y.not_null"]]


def test_infinities_are_no_numbers_and_are_counted():
    checked = check(PROJECT, rows(["b"] * 3, [float("inf"), 1.0, float("-inf")]))
    assert checked.report.broken == {f"{NAME}.dtype": 2}
    assert checked.facts.columns[NAME].n == 1


def test_the_largest_and_the_smallest_float_have_a_histogram():
    project = project_with({"expect": "median", "column": NAME, "max": 2})
    page, _ = page_of(project, rows(["a"] * 3, [-1.7e308, 1.0, 1.7e308]))
    assert "-1.699e+308" in page
    assert "nan" not in page
