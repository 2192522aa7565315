"""The page and the JUnit document: complete, escaped, and what their readers expect."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mlops_ray.training.gates import naming, report
from mlops_ray.training.gates.junit import junit
from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict, combine, plain
from tests.unit.training.gates.worlds import judged, trained, world

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><circle r="3"/></svg>'


def hostile() -> CheckResult:
    return CheckResult("<script>alert('x')</script>", Verdict.FAIL, "1 < 2 & 3 \x00", {"<k>": "<v>", "n": 1})


@pytest.fixture(scope="module")
def result() -> GateResult:
    rows = world()
    plan: dict[str, Any] = {
        "limits": [{"metric": "roc_auc", "min": 0.5}],
        "slices": {"columns": ["colour", "a"], "margin": 0.2},
        "fairness": {"columns": ["group"]},
        "leakage": {},
    }
    names = np.where(rows.group[rows.held] == "m", "<img src=x>", "f").astype(object)
    good = trained(rows)

    def broken(columns: Any) -> np.ndarray:
        return np.where(columns["colour"] == "red", 0.5, good(columns))

    case = rows.case(broken, good)
    case = rows.case(broken, good, groups={**case.groups, "group": names})
    return judged(plan, case, extra_checks=[hostile])


class Reader(HTMLParser):
    """Which elements a page has, that each is closed, and what is refused in a page of ours."""

    VOID = ("meta", "img", "wbr")
    DRAWN = ("rect", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_self_contained(result: GateResult) -> None:
    page = report.html("Gates of <x>", result, {"<plot>": SVG}, {"<key>": "<value>", "params": {"depth": 3}})
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.seen
    assert reader.seen.count("img") == 1
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.sources)
    for raw in ("<x>", "<key>", "<value>", "<plot>", "<k>", "<img src=x>", "alert(1)"):
        assert raw not in page
    assert "&lt;script&gt;" in page
    assert "1 &lt; 2 &amp; 3" in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_shows_verdict_metrics_slices_groups_and_weak_slices(result: GateResult) -> None:
    page = report.html("Gates", result)
    assert "Failed: the candidate is refused." in page
    for heading in ("Checks", "Metrics on the holdout", "Slices", "Fairness", "Weak slices"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<details>") == sum(bool(set(c.evidence) - {"slices", "groups", "probes"}) for c in result.checks)
    for check in result.checks:
        assert f'title="{check.name}">{naming.check(check.name)}<' in page or check.name.startswith("<")
    assert "colour = red" in page
    assert "{" not in re.sub(r"<style>.*?</style>|<code>.*?</code>", "", page, flags=re.S)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().replace("nanmean", "")


def test_plots_have_room_as_wide_as_they_were_drawn_and_one_title(result: GateResult) -> None:
    drawn = {f"w{w}": f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} 250"></svg>' for w in (331.2, 734.4)}
    page = report.html("Gates", result, {**drawn, "unknown": SVG})
    assert re.findall(r'<figure class="of(\d)"><img alt="(\S+)"', page) == [
        ("2", "w331.2"),
        ("6", "w734.4"),
        ("2", "unknown"),
    ]
    assert "figcaption" not in page


def test_a_page_of_next_to_nothing_is_whole() -> None:
    empty = GateResult(Verdict.INCONCLUSIVE, (), {})
    page = report.html("Gates", empty)
    assert "Inconclusive" in page
    assert "0 of 0 checks passed" in page
    assert page.count("<h2>") == 1
    passed = GateResult(Verdict.PASS, (CheckResult("rows", Verdict.PASS, "enough"),), {})
    assert "Passed: the candidate may be registered." in report.html("Gates", passed)


def test_the_junit_document_follows_the_schema(result: GateResult) -> None:
    """Attributes and order of the Jenkins xUnit schema: a suite's counts are those of its cases, a failure has message
    and type, and nothing is skipped."""
    root = ElementTree.fromstring(junit("flights & <more>", result))
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [element.tag for element in suite] == ["properties", *["testcase"] * len(cases)]
    assert [case.get("name") for case in cases][:-1] == [check.name for check in result.checks][:-1]
    for element in (root, suite):
        assert element.get("name") == "flights & <more>"
        assert int(element.get("tests", "")) == len(cases) == len(result.checks)
        assert int(element.get("failures", "")) == len(suite.findall("testcase/failure")) > 0
        assert element.get("errors") == "0"
    assert not suite.findall("testcase/skipped")
    for case, check in zip(cases, result.checks, strict=True):
        assert case.get("classname")
        assert case.get("time") is None  # nobody took it
        assert [child.tag for child in case] == ["failure", "system-out"][check.verdict is Verdict.PASS :]
        failure = case.find("failure")
        if failure is not None:
            assert failure.get("type") == check.verdict.value
            assert failure.get("message")
    properties = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert properties["verdict"] == "fail"
    for name, verdict in (("failed", Verdict.FAIL), ("inconclusive", Verdict.INCONCLUSIVE)):
        assert int(properties[name] or "") == sum(check.verdict is verdict for check in result.checks)
    assert float(properties["roc_auc"] or "") == pytest.approx(result.metrics["roc_auc"].value)


def test_an_inconclusive_check_is_a_failure_of_its_own_type() -> None:
    one = GateResult(Verdict.INCONCLUSIVE, (CheckResult("rows", Verdict.INCONCLUSIVE, "too few"),), {})
    failure = ElementTree.fromstring(junit("x", one)).find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("type") == "inconclusive"


def test_plain_values_are_json() -> None:
    odd = {
        1: np.float64("nan"),
        "a": np.arange(2),
        "b": (np.int64(3), np.bool_(True), float("inf")),
        "c": {"d": np.str_("x"), "e": None},
    }
    told = plain(odd)
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "1": None,
        "a": [0, 1],
        "b": [3, True, None],
        "c": {"d": "x", "e": None},
    }


def test_nothing_to_judge_is_inconclusive() -> None:
    assert combine([]) is Verdict.INCONCLUSIVE
    assert combine([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert combine([Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]) is Verdict.FAIL
    assert combine([Verdict.PASS]) is Verdict.PASS
