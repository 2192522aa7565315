"""The page of `mlops-ray analyze`: whole, alone, and safe to open."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl

from mlops_ray.rollout.page import page
from mlops_ray.verbs.analyze import analyze

EVIL = "<script>alert(1)</script>"
_VOID = {"meta", "br", "link", "img", "hr"}


class Tags(HTMLParser):
    """Which tags there are, and whether each is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def evil(tmp_path: Path) -> str:
    """The page of a log whose key, variant, metric and values are hostile."""
    n = 400
    rows = {
        "time": [float(60 * at) for at in range(n)],
        f"key{EVIL}": [f"{EVIL}{at}" for at in range(n)],
        "variant": [EVIL if at % 2 else "stable" for at in range(n)],
        f"spent{EVIL}": [0.5 + at % 3 for at in range(n)],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"columns: {{ key: 'key{EVIL}' }}\nvariants: {{ canary: '{EVIL}' }}\nshare: 0.5\nanalyses:\n"
        f"  - {{ metric: business, name: 'spent{EVIL}', low: 0, high: 2, better: lower, margin: 0.5 }}\n"
    )
    return page(analyze(tmp_path / "log.parquet", plan))


def test_it_is_whole_and_holds_no_script_of_the_log(tmp_path: Path) -> None:
    shown = evil(tmp_path)
    tags = Tags()
    tags.feed(shown)
    tags.close()
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.seen.count("svg") == 2
    assert "business:spent&lt;script&gt;" in shown


def test_it_needs_no_other_host(tmp_path: Path) -> None:
    shown = evil(tmp_path)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|src=", shown)


def test_it_is_light_or_dark_and_says_what_it_promises(tmp_path: Path) -> None:
    shown = evil(tmp_path)
    assert "color-scheme: light dark" in shown
    assert "prefers-color-scheme: dark" in shown
    assert "What this promises" in shown
