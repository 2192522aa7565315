from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mlops_ray.training.evaluation import curves, plots
from mlops_ray.training.evaluation.intervals import Estimate

NAMES = ("plain", "<b>&amp;</b>", "$x_1$ costs", "名前", "a name that goes on and on until it must be cut")


def drawn(task: str) -> dict[str, plots.Figure]:
    random = np.random.default_rng(7)
    n = 400
    if task == "binary":
        p = random.beta(2, 3, n)
        return plots.figures(curves.curves("binary", random.random(n) < p, p, (0, 1)))
    if task == "multiclass":
        p = random.dirichlet(np.ones(5), n)
        return plots.figures(curves.curves("multiclass", np.array([random.choice(5, p=q) for q in p]), p, NAMES))
    y = random.standard_t(2, n)
    return plots.figures(curves.curves("regression", y, y + random.standard_t(2, n), ()))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("binary", {"calibration", "roc", "precision_recall", "lift", "confusion"}),
        ("multiclass", {"calibration", "roc", "precision_recall", "confusion"}),
        ("regression", {"residuals"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # the font of the picture need not have every script
def test_plots_are_self_contained_and_repeat(task: str, names: set[str]) -> None:
    figures, again = drawn(task), drawn(task)
    assert figures.keys() == names
    for name, figure in figures.items():
        text = plots.svg(figure, f"a-{name}")
        assert text == plots.svg(again[name], f"a-{name}") == plots.svg(figure, f"a-{name}")
        root = ET.fromstring(text)
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert len(set(ids)) == len(ids)
        assert all(str(i).startswith(f"a-{name}-") for i in ids)
        used = re.findall(r'href="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
        assert {u.removeprefix("#") for u in used} <= set(ids)
        assert set(re.findall(r"https?://[^\"<> ]*", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert not re.search(r"<(script|image|metadata|!DOCTYPE)", text)
        assert 300 < float(root.get("width", "nan")) < 1100
        assert root.get("style") == "max-width:100%;height:auto"
        assert "height" not in root.attrib
        assert plots.png(figure) == plots.png(again[name])
        assert plots.png(figure).startswith(b"\x89PNG")


def test_the_texts_of_a_plot_can_be_read() -> None:
    figure = plots.roc({"<b>": curves.Curve((0, 1), (0, 1), (1, 0)), "$": curves.Curve((0, 1), (0, 1), (1, 0))})
    words = [e.text for e in ET.fromstring(plots.svg(figure)).iter() if e.tag.endswith("text")]
    assert {"ROC", "false positive rate", "true positive rate", "<b>", "$"} <= set(words)


def test_rows_with_intervals_and_bars() -> None:
    rows = [("first", Estimate(0.2, 0.1, 0.3, 9, 9)), ("without an interval", Estimate(0.1, np.nan, np.nan, 9, 1))]
    text = plots.svg(plots.estimates("Importance", rows, unit="nats per row"))
    assert text.index(">first<") < text.index(">without an interval<")
    assert ">nats per row<" in text
    assert ">only<" in plots.svg(plots.bars("SHAP", [("only", 1.0)], unit="log-odds"))
    assert plots.svg(plots.estimates("None", [], unit="nats")).startswith("<svg")


def test_drawing_leaves_the_style_of_the_process_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.png(drawn("binary")["roc"])
    assert dict(mpl.rcParams) == before
