"""`mlops-ray analyze`: a log in, a verdict, an exit code and a page out."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from mlops_ray import cli
from mlops_ray.config import LogPlan, load_log_plan
from mlops_ray.errors import MlopsRayError
from mlops_ray.rollout import recorded, sequence
from mlops_ray.rollout.analysis import judged
from mlops_ray.training.gates.verdict import Verdict

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
PLAN: dict[str, Any] = {"analyses": [{"metric": "errors", "column": "failed", "margin": 0.02}]}
START = 1_767_258_000


def world(rates: tuple[float, float], *, n: int = 12_000, seed: int = 0, realised: float | None = None) -> pl.DataFrame:
    """Requests of 4,000 customers: a share of 0.1, then 0.5, and error rates of stable and canary. realised: the share
    of customers that the canary really gets, whatever the log says."""
    rng = np.random.default_rng(seed)
    place, customer = rng.random(4000), rng.integers(0, 4000, n)
    share = np.repeat([0.1, 0.5], n // 2)
    canary = place[customer] < (share if realised is None else realised)
    failed = rng.random(n) < np.where(canary, rates[1], rates[0])
    return pl.DataFrame(
        {
            "time": START + 3 * np.arange(n),
            "key": [f"c{one}" for one in customer],
            "variant": np.where(canary, "canary", "stable"),
            "share": share,
            "failed": failed.astype(np.int64),
            "ms": rng.lognormal(4.5, 0.4, n).round(1),
        }
    )


class Desk:
    """A folder with a log and a plan."""

    def __init__(self, folder: Path) -> None:
        self.log, self.plan, self.page = folder / "log.csv", folder / "plan.yaml", folder / "report.html"
        self.write(world((0.03, 0.03)))
        self.by(PLAN)

    def write(self, rows: pl.DataFrame) -> None:
        rows.write_csv(self.log)

    def by(self, plan: dict[str, Any]) -> None:
        self.plan.write_text(yaml.safe_dump(plan), encoding="utf-8")

    def run(self, *more: str, log: Path | None = None) -> Any:
        return RUNNER.invoke(cli.app, ["analyze", "--log", str(log or self.log), "--plan", str(self.plan), *more])

    def told(self, *more: str, log: Path | None = None) -> Any:
        done = self.run("--json", *more, log=log)
        assert done.exit_code in (0, 3, 4), done.output
        return json.loads(done.stdout)

    def refused(self, log: Path | None = None) -> str:
        """What the error says, for which the command returns 2."""
        error = self.run(log=log).exception
        assert isinstance(error, MlopsRayError)
        assert error.exit_code == 2
        return " ".join(str(error).split())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("rates", "n", "verdict", "code"),
    [((0.03, 0.03), 12_000, "pass", 0), ((0.03, 0.09), 12_000, "fail", 3), ((0.03, 0.03), 1000, "inconclusive", 4)],
)
def test_the_verdict_is_the_exit_code(desk: Desk, rates: tuple[float, float], n: int, verdict: str, code: int) -> None:
    desk.write(world(rates, n=n))
    done = desk.run()
    assert done.exit_code == code
    assert f"{verdict}:" in done.stdout.splitlines()[-1]
    told = desk.told()
    assert (told["verdict"], told["rows"], told["warnings"]) == (verdict, n, [])
    assert (told["decided"] is None) == (verdict == "inconclusive")


def test_every_format_says_the_same(desk: Desk, tmp_path: Path) -> None:
    rows = world((0.03, 0.05))
    rows.write_parquet(tmp_path / "log.parquet")
    rows.write_ndjson(tmp_path / "log.jsonl")
    desk.write(rows)
    found = [desk.told(log=tmp_path / name) for name in ("log.csv", "log.parquet", "log.jsonl")]
    for one in found:
        del one["log"]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rates", [(0.03, 0.03), (0.03, 0.05), (0.2, 0.5)])
def test_the_end_of_the_sequence_is_what_a_rollouts_look_would_say(desk: Desk, rates: tuple[float, float]) -> None:
    """`sequence` adds up evidence key by key; `judged` looks once, at all of it."""
    desk.write(world(rates))
    plan = load_log_plan(desk.plan)
    log = recorded.checked("log", recorded.read(desk.log, plan), plan)
    (sample,) = recorded.samples(plan, log.outcomes)
    metric = judged("errors:failed", 0.02, sample, alpha=plan.alpha, of=1, min_keys=plan.min_keys, waits=False)
    (told,) = desk.told()["metrics"]
    for name in ("estimate", "evidence_worse", "evidence_fine", "low", "high", "n_keys"):
        assert told[name] == pytest.approx(getattr(metric, name), rel=1e-3, abs=1e-4), name
    looks = told["looks"]
    assert looks[-1]["n_keys"] == told["n_keys"]
    assert all(a["at"] < b["at"] and a["n_keys"] <= b["n_keys"] for a, b in itertools.pairwise(looks))


def test_a_look_in_the_past_saw_what_there_was(desk: Desk) -> None:
    desk.write(world((0.03, 0.09)))
    whole = desk.told()
    then = desk.told("--at", "2026-01-01T10:00:00Z")
    assert then["rows"] < whole["rows"]
    assert then["until"] <= 1_767_261_600


def test_equal_canaries_are_rarely_worse_and_worse_ones_are_found() -> None:
    """200 logs, looked at after each key: more than 24 false alarms at alpha 5 % have probability below 1e-4."""
    n = 200
    for worse, most, least in ((0.0, 24, 0), (0.10, n, n - 10)):
        failed = 0
        for seed in range(n):
            plan = LogPlan.model_validate(PLAN)
            rows = world((0.05, 0.05 + worse), n=3000, seed=seed)
            log = recorded.checked("log", rows, plan)
            found = sequence.report(plan, log)
            failed += found.verdict is Verdict.FAIL
            if found.verdict is Verdict.FAIL:
                assert found.courses[0].decided is not None
        assert least <= failed <= most, (worse, failed)


def test_a_share_that_was_not_realised_is_said(desk: Desk) -> None:
    desk.write(world((0.03, 0.03), realised=0.4))
    told = desk.told()
    assert told["assignment"]["evidence"] > 100
    assert told["assignment"]["realised"] == pytest.approx(0.4, abs=0.05)
    assert any("share" in one for one in told["warnings"])
    assert told["verdict"] != "pass"
    sound = world((0.03, 0.03))
    desk.write(sound)
    assert desk.told()["assignment"]["evidence"] < 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"variant": pl.lit("blue")}, "row 1, column variant: 'blue' is neither 'stable' nor 'canary'"),
        ({"share": pl.lit(1.0)}, "row 1, column share: '1.0' is no share between 0 and 1"),
        ({"time": pl.col("time").reverse()}, "is before the row above it; sort the log by time"),
        ({"time": pl.lit("soon")}, "'soon' is no time; write 2026-05-01T12:00:00Z"),
        ({"time": pl.col("time") * 1000}, "divide milliseconds by 1,000"),
        ({"key": pl.lit(None, pl.String)}, "is no key; give each row the key"),
        ({"failed": pl.lit(2)}, "row 1, column failed: '2' is not 0 or 1 (12,000 such rows)"),
        ({"failed": pl.lit("yes")}, "'yes' is no number"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(desk: Desk, change: dict[str, pl.Expr], says: str) -> None:
    desk.write(world((0.03, 0.03)).with_columns(**change))
    assert says in desk.refused()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({}, "analyses"),
        ({"analyses": []}, "judges nothing"),
        ({"analyses": [{"metric": "errors", "margin": 0.02}]}, "column"),
        (PLAN | {"columns": {"key": "customer"}}, "column customer (columns.key of the plan) is missing"),
        (PLAN | {"share": 1.5}, "share"),
        (PLAN | {"variants": {"stable": "canary"}}, "name the two that are compared"),
        ({"analyses": [{"metric": "log_loss"}]}, "log_loss needs columns.label"),
        ({"analyses": [{"metric": "failures"}]}, "errors of both variants are `metric: errors`"),
        (PLAN | {"alhpa": 0.1}, "did you mean 'alpha'?"),
    ],
)
def test_a_plan_that_is_wrong_says_where(desk: Desk, plan: dict[str, Any], says: str) -> None:
    desk.by(plan)
    assert says in desk.refused()


@pytest.mark.parametrize("name", ["log.txt", "missing.csv"])
def test_a_file_that_is_none(desk: Desk, tmp_path: Path, name: str) -> None:
    (tmp_path / "log.txt").write_text("x", encoding="utf-8")
    assert name in desk.refused(tmp_path / name)


def test_quality_on_the_same_row_and_by_assignment(desk: Desk) -> None:
    rng = np.random.default_rng(5)
    rows = world((0.0, 0.0))
    truth = rng.random(len(rows))
    noisy = np.clip(truth + rng.normal(0, 0.25, len(rows)), 0.01, 0.99)
    rows = rows.with_columns(
        label=pl.Series((rng.random(len(rows)) < truth).astype(np.int64)),
        stable_score=pl.Series(truth),
        canary_score=pl.Series(noisy),
    )
    desk.write(rows)
    both = {"label": "label", "stable_score": "stable_score", "canary_score": "canary_score"}
    desk.by({"columns": both, "analyses": [{"metric": "log_loss", "clip": 0.05, "margin": 0.02}]})
    same_row = desk.told()
    assert (same_row["verdict"], same_row["metrics"][0]["same_row"]) == ("fail", True)
    desk.by(
        {
            "columns": both,
            "prediction_affects_outcome": True,
            "analyses": [{"metric": "log_loss", "clip": 0.05, "margin": 0.02}],
        }
    )
    apart = desk.told()["metrics"][0]
    assert not apart["same_row"]
    assert apart["high"] - apart["low"] > same_row["metrics"][0]["high"] - same_row["metrics"][0]["low"]


class Page(HTMLParser):
    """Which tags a page has, which addresses it names, and whether all that opens closes."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_what_others_wrote(desk: Desk) -> None:
    evil = "<script>alert(1)</script>"
    desk.write(world((0.03, 0.09)).rename({"failed": evil}))
    desk.by({"analyses": [{"metric": "errors", "column": evil, "margin": 0.02}]})
    assert desk.run("--html", str(desk.page)).exit_code == 3
    text = desk.page.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert "script" not in page.tags
    assert {"svg", "table"} <= page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "viewport" in text
    assert "The canary is worse" in text


def test_a_page_that_cannot_be_written_is_said_before_the_work(desk: Desk, tmp_path: Path) -> None:
    done = desk.run("--html", str(tmp_path / "nowhere" / "report.html"))
    assert done.exit_code == 2
