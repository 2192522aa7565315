"""`mlops-ray analyze` on logs of three kinds; no project, no cluster, and no Ray is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from mlops_ray import cli
from mlops_ray.errors import ConfigError, LogRefused

RUNNER = CliRunner(env={"COLUMNS": "180", "NO_COLOR": "1", "TERM": "dumb"})
PLAN = "columns: { key: customer }\nshare: 0.5\nanalyses: [{ metric: errors, column: failed, margin: 0.05 }]\n"


def write(folder: Path, *, n: int = 3000, canary: float = 0.02, plan: str = PLAN) -> list[str]:
    """A log and its plan, as options."""
    rng = np.random.default_rng(0)
    mine = rng.random(n) < 0.5
    rows = {
        "time": np.arange(n) * 10.0,
        "customer": np.arange(n),
        "variant": np.where(mine, "canary", "stable"),
        "failed": (rng.random(n) < np.where(mine, canary, 0.02)).astype(int),
    }
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    (folder / "plan.yaml").write_text(plan)
    return ["analyze", "--log", str(folder / "log.csv"), "--plan", str(folder / "plan.yaml")]


@pytest.mark.parametrize(
    ("log", "verdict", "code"),
    [({}, "pass", 0), ({"canary": 0.2}, "fail", 3), ({"n": 50}, "inconclusive", 4)],
)
def test_exit_codes_say_the_verdict(log: dict[str, Any], verdict: str, code: int, tmp_path: Path) -> None:
    words = write(tmp_path, **log)
    done = RUNNER.invoke(cli.app, [*words, "--json"])
    assert done.exit_code == code, done.output
    found = json.loads(done.output)
    assert (found["verdict"], found["rows"]) == (verdict, log.get("n", 3000))
    shown = RUNNER.invoke(cli.app, words)
    assert shown.exit_code == code
    assert f"{verdict}: {found['says']}" in shown.output
    assert "errors:failed" in shown.output


@pytest.mark.parametrize("share", ["1e-320", "0.99999999"])
def test_a_share_in_the_log_that_nobody_can_judge_by_is_refused(share: str, tmp_path: Path) -> None:
    words = write(tmp_path, plan=PLAN.replace("share: 0.5\n", ""))
    frame = pl.read_csv(tmp_path / "log.csv").with_columns(share=pl.lit(share))
    frame.write_csv(tmp_path / "log.csv")
    done = RUNNER.invoke(cli.app, words)
    assert isinstance(done.exception, LogRefused), done.output
    assert "is no share between 0 and 1 (at least 1e-06 from either)" in str(done.exception)


def test_rows_that_failed_need_no_latency(tmp_path: Path) -> None:
    """An empty cell is no number: it counts for no key, and where none has one nothing is shown."""
    words = write(tmp_path, plan=PLAN.replace("]\n", ", { metric: latency, column: ms, above_ms: 9, margin: 0.05 }]\n"))
    frame = pl.read_csv(tmp_path / "log.csv")
    frame.with_columns(ms=pl.when(pl.col("failed") == 0).then(5.0)).write_csv(tmp_path / "log.csv")
    found = json.loads(RUNNER.invoke(cli.app, [*words, "--json"]).output)["metrics"]
    assert (found[0]["n_keys"], found[1]["n_keys"]) == (3000, 3000 - frame["failed"].sum())
    frame.with_columns(ms=pl.lit("")).write_csv(tmp_path / "log.csv")
    done = RUNNER.invoke(cli.app, words)
    assert done.exit_code == 4, done.output
    shown = next(line for line in done.output.splitlines() if line.startswith("latency"))
    assert "nan" not in done.output
    assert "+0" not in shown


def test_the_page_is_written(tmp_path: Path) -> None:
    done = RUNNER.invoke(cli.app, [*write(tmp_path), "--html", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_as_it_stood_earlier(tmp_path: Path) -> None:
    done = RUNNER.invoke(cli.app, [*write(tmp_path), "--at", "1970-01-01T00:10:00", "--json"])
    assert json.loads(done.output)["rows"] == 61


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("share: 0.5\nanalyses: []\n", "judges nothing; give one"),
        (PLAN + "shar: 0.1\n", "plan.yaml:4: shar"),
        (PLAN + "variants: { stable: x, canary: x }\n", "stable and canary are both 'x'; name the two"),
        ("share: 0.5\nanalyses: [{ metric: brier }]\n", "brier needs columns.label"),
        (PLAN + "columns: { score: a, stable_score: b, canary_score: c }\n", "columns"),
        (PLAN + "look_s: 1e30\n", "look_s"),
        (PLAN + "look_s: 1e-30\n", "look_s"),
        (PLAN.replace("0.5", "1e-320", 1), "share"),
        (PLAN.replace("0.5", "0.99999999", 1), "share"),
        (PLAN + "min_requests: 9\nmax_requests: 3\n", "min_requests 9 is above max_requests 3"),
    ],
)
def test_a_wrong_plan_is_refused(plan: str, says: str, tmp_path: Path) -> None:
    done = RUNNER.invoke(cli.app, write(tmp_path, plan=plan))
    assert isinstance(done.exception, ConfigError), done.output
    assert says in str(done.exception)
    assert done.exception.exit_code == 2


def test_a_wrong_log_is_refused_before_a_page_is_written(tmp_path: Path) -> None:
    words = write(tmp_path)
    log = tmp_path / "log.csv"
    log.write_text(log.read_text().replace("stable", "blue", 1))
    done = RUNNER.invoke(cli.app, [*words, "--html", str(tmp_path / "report.html")])
    assert isinstance(done.exception, LogRefused)
    assert "column variant: 'blue' is neither 'stable' nor 'canary'" in str(done.exception)
    assert not (tmp_path / "report.html").exists()


def test_it_needs_no_ray_and_a_mistake_exits_with_two(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom mlops_ray.cli import main\ntry:\n    main()\nexcept SystemExit as exc:\n"
        "    sys.stderr.write('ray' if 'ray' in sys.modules else '')\n    raise\n"
    )
    words = write(tmp_path)
    words[2] = str(tmp_path / "none.csv")
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("there is no such file; check --log\n")
