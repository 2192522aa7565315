from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from mlops_ray.config import About
from mlops_ray.governance.card import card
from mlops_ray.governance.document import Document, Section, Table, Text
from mlops_ray.governance.facts import Facts
from tests.unit.governance.conftest import SPLIT

HEADINGS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Fairness",
    "Ethical considerations",
    "Caveats and recommendations",
    "Provenance",
]


class Page(HTMLParser):
    """Checks that tags nest, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def section(markdown: str, title: str) -> str:
    return markdown.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_card_has_the_papers_sections_in_both_forms(facts: Facts) -> None:
    made = card(facts, About())
    assert re.findall("<h2>(.*?)</h2>", made.html()) == HEADINGS
    assert re.findall("^## (.*)$", made.markdown(), flags=re.M) == HEADINGS


def test_a_page_is_whole_and_takes_nothing_from_outside(facts: Facts) -> None:
    page = Page()
    page.feed(card(facts, About(owner="<script>alert(1)</script>")).html())
    assert page.open == []
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert [str(source)[:22] for source in sources] == ["data:image/png;base64,"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "a"}


def test_values_are_recorded_ones(facts: Facts) -> None:
    text = card(facts, About()).markdown()
    assert "| log\\-loss" not in text
    assert "| log-loss | 0.4500 | 0.4300 to 0.4700 | 5,000 | 60 |" in text
    assert "| ROC AUC | 0.7123 | not resolved | 5,000 | 4 |" in text
    assert "leave out 5% on either side, by a bootstrap of whole blocks of 86,400 s" in text
    assert "max\\_leaf\\_nodes = 31" in section(text, "Model details")
    assert "2 numeric, 1 categorical" in section(text, "Model details")
    assert "20,000" in section(text, "Training data")
    assert "| Holds rows of versions | 1 (1,000 rows) |" in section(text, "Training data")
    assert "| noise" not in section(text, "Fairness")
    assert "| fairness: origin, demographic parity | pass | rates differ by at most 0.04 |" in section(text, "Fairness")
    factors = section(text, "Factors")
    assert "| slice | verdict | loss less the rival's | from | to | rows | blocks |" in factors
    assert "| carrier UA | pass | -0.0100 | -0.0300 | +0.0020 | 900 | 100 |" in factors
    caveats = section(text, "Caveats and recommendations")
    assert "quantiles may be off by 2% of the rows" in caveats
    assert "robustness: noise (inconclusive)" in caveats
    assert "changes that are not committed" in caveats
    assert "drift: distance drifted" in section(text, "Provenance")


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        (SPLIT, "By at: training rows before 2023-11-15, validation from then on, holdout from 2023-11-16"),
        (SPLIT.replace("1700092800000000", "1700092801999999"), "holdout from 2023-11-16 00:00:01 UTC"),
        (
            '{"by": "group", "columns": ["store"], "salt": "s", "validation_share": 0.15, "holdout_share": 0.2}',
            "By group: rows with equal store share a side, picked by a hash; 0.2 of them are holdout, 0.15 validation, "
            "the others training",
        ),
        ('{"by": "moon"}', '{"by": "moon"}'),
        ("by hand", "by hand"),
    ],
)
def test_a_split_is_a_sentence(facts: Facts, recorded: str, says: str) -> None:
    assert facts.run is not None
    run = replace(facts.run, params={**facts.run.params, "split": recorded})
    assert escape(says) in card(replace(facts, run=run), About()).html()


def test_what_nobody_said_is_not_made_up(facts: Facts) -> None:
    text = card(facts, About()).markdown()
    for title in ("Intended use", "Ethical considerations"):
        assert section(text, title).strip() == "*The project file does not say.*"
    assert "does not say: owner, contact, license" in section(text, "Model details")
    said = About(intended_use="To warn travellers.\n\nBy airlines.", ethical_considerations="None known.", owner="Ops")
    told = card(facts, said).markdown()
    assert section(told, "Intended use").strip() == "To warn travellers.\n\nBy airlines."
    assert section(told, "Ethical considerations").strip() == "None known."


def test_a_version_of_which_little_is_known(facts: Facts) -> None:
    bare = replace(
        facts,
        run=None,
        dataset=None,
        parents=(),
        rollouts=(),
        retrain=None,
        entries=(),
        serves=None,
        missing={"run": "MLflow has no run r", "dataset": "it was removed"},
    )
    text = card(bare, About()).markdown()
    assert re.findall("^## (.*)$", text, flags=re.M) == HEADINGS
    assert section(text, "Metrics").strip() == "*Not recorded.*"
    assert "run is not on record | MLflow has no run r" in section(text, "Caveats and recommendations")
    assert "It has no traffic." in text
    page = Page()
    page.feed(card(bare, About()).html())
    assert page.open == []


@pytest.mark.parametrize("gates", [{}, {"checks": None, "metrics": []}, {"checks": ["x"], "metrics": {"a": 1}}])
def test_a_file_of_another_shape_does_no_harm(facts: Facts, gates: dict[str, object]) -> None:
    assert facts.run is not None
    made = card(replace(facts, run=replace(facts.run, gates=gates)), About())
    assert "Not recorded" in made.html()
    assert "Not recorded" in made.markdown()


def test_markup_in_values_stays_text() -> None:
    bad = "<b>x</b> | [a](javascript:alert) `c` *d* _e_ & \\\nnew line"
    made = Document(bad, bad, (Section(bad, (Text(bad), Table(((bad, bad),), ("h", bad)))),))
    assert "<b>" not in made.html()
    rows = [line for line in made.markdown().splitlines() if line.startswith("| \\<b")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    assert not re.findall(r"(?<!\\)[<*`\[\]_&]", rows[0])


def test_numbers_stand_right_and_names_left() -> None:
    page = Document("t", "", (Section("s", (Table((("a", "1.5"), ("b", "1,000")), ("name", "n")),)),)).html()
    assert '<td class="number">1.5</td>' in page
    assert "<td>a</td>" in page
