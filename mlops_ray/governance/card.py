"""The model card of a version, from what is on record and from what the project file says about itself.

Sections after M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Nothing is made up: a section without a
record says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time
from typing import Any

from mlops_ray.config import About
from mlops_ray.governance.document import Block, Document, Heading, Pictures, Section, Table, Text
from mlops_ray.governance.facts import Facts
from mlops_ray.governance.lineage import Lineage, checks_of, lineage
from mlops_ray.training.gates import naming

_SLICES, _FAIRNESS = ("slices", "slice", "weak_slices"), ("fairness",)
_COLUMNS = {
    "slice": "slice",
    "verdict": "verdict",
    "value": "loss less the rival's",
    "lower": "from",
    "upper": "to",
    "n": "rows",
    "n_blocks": "blocks",
}
"""Of a slice's evidence what people read, as the gates' page names it."""
_MOST_ROWS = 60
"""Of one table of slices: what is longer is read in gates.json."""


def card(facts: Facts, about: About) -> Document:
    """The card: `html()` or `markdown()` of what this returns."""
    of = lineage(facts)
    row = facts.version
    said = f"Version {row.version}, {row.status} {str(of.version['created'])[:10]}"
    serves = f"It answers as {facts.serves}." if facts.serves else "It has no traffic."
    waits = " It waits for an approval." if not row.may_serve else ""
    return Document(
        f"Model card: {row.project} v{row.version}",
        f"{said}. {serves}{waits}",
        (
            Section("Model details", tuple(_details(facts, of, about))),
            Section("Intended use", tuple(_intended(about))),
            Section("Factors", tuple(_factors(facts, about))),
            Section("Metrics", tuple(_metrics(facts))),
            Section("Evaluation data", tuple(_evaluation(facts))),
            Section("Training data", tuple(_training(of))),
            Section("Quantitative analyses", tuple(_analyses(facts))),
            Section("Fairness", tuple(_fairness(facts))),
            Section("Ethical considerations", tuple(_given(about.ethical_considerations))),
            Section("Caveats and recommendations", tuple(_caveats(facts, about))),
            Section("Provenance", tuple(_provenance(of))),
        ),
    )


def _details(facts: Facts, of: Lineage, about: About) -> Iterator[Block]:
    row, run = facts.version, facts.run
    config = (run.config if run is not None else None) or {}
    features = config.get("features") or {}
    counted = [
        f"{len(block['columns'])} {kind}"
        for kind in ("numeric", "categorical", "datetime", "text")
        if isinstance(block := features.get(kind), Mapping) and block.get("columns")
    ]
    params = run.params if run is not None else {}
    winner = {n: v for n, v in params.items() if n not in ("estimator", "seed", "split", "candidate")}
    yield from _table(
        ("Predicts", _joined(config.get("target"), config.get("task"))),
        ("Estimator", params.get("estimator") or row.tags.get("estimator")),
        ("Parameters", ", ".join(f"{n} = {v}" for n, v in winner.items())),
        ("Features", ", ".join(counted)),
        ("Served by", row.tags.get("engine")),
        ("Trained", of.run["started"] if of.run is not None else None),
        ("Artifact", row.artifact),
        ("SHA-256 of its manifest", row.sha256),
    )
    answers = (("Owner", about.owner), ("Contact", about.contact), ("License", about.license))
    given = tuple((name, text) for name, text in answers if text)
    if given:
        yield Table(given)
    if len(given) < len(answers):
        absent = ", ".join(name.lower() for name, text in answers if not text)
        yield Text(f"The project file does not say: {absent}.", soft=True)


def _intended(about: About) -> Iterator[Block]:
    yield from _given(about.intended_use)
    if about.out_of_scope:
        yield Heading("Out of scope")
        yield Text(about.out_of_scope)


def _factors(facts: Facts, about: About) -> Iterator[Block]:
    if about.factors:
        yield Text(about.factors)
    found = list(_checks(facts, _SLICES))
    for check in found:
        yield Heading(_title(check))
        yield Text(f"{check.get('verdict')}: {check.get('detail')}")
        yield from _slice_table(check.get("evidence") or {})
    if not found and not about.factors:
        yield Text("Not recorded: no slices were declared, and the project file names no factors.", soft=True)


def _slice_table(evidence: Mapping[str, Any]) -> Iterator[Block]:
    found = evidence.get("slices")
    rows = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    if not rows:
        return
    columns = {name: says for name, says in _COLUMNS.items() if name in rows[0]}
    cells = tuple(tuple(_cell(name, entry.get(name)) for name in columns) for entry in rows[:_MOST_ROWS])
    yield Table(cells, tuple(columns.values()))
    if len(rows) > _MOST_ROWS:
        yield Text(f"{len(rows) - _MOST_ROWS} further slices stand in the run's gates/gates.json.", soft=True)


def _metrics(facts: Facts) -> Iterator[Block]:
    gates = _gates(facts)
    found = gates.get("metrics")
    rows = tuple(
        (
            naming.metric(str(name)),
            _shown(e.get("value")),
            _between(e),
            _shown(e.get("n")),
            _shown(e.get("n_blocks")),
        )
        for name, e in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(e, Mapping)
    )
    if not rows:
        yield Text("Not recorded.", soft=True)
        return
    yield Table(rows, ("metric", "value", "interval", "rows", "blocks"))
    config = (facts.run.config if facts.run is not None else None) or {}
    rules = config.get("gates") or {}
    if rules.get("alpha") is not None:
        group = rules.get("block_group")
        by = f"values of {group}" if group else f"blocks of {_shown(rules.get('block_s'))} s"
        yield Text(
            f"Intervals leave out {rules['alpha']:.0%} on either side, by a bootstrap of whole {by}. "
            "They are of the packaged version itself, on rows that neither it nor its search has seen."
        )
    if facts.version.tags.get("threshold"):
        yield Text(f"Decisions are made at a score of {facts.version.tags['threshold']}.")


def _evaluation(facts: Facts) -> Iterator[Block]:
    run = facts.run
    split = _split(run.params.get("split")) if run is not None else None
    counts = {n: v for n, v in run.metrics.items() if n.startswith("rows.")} if run is not None else {}
    yield from _table(
        ("Holdout rows", _shown(counts.get("rows.holdout"))),
        ("Validation rows", _shown(counts.get("rows.validation"))),
        ("Split", split),
        ("Dataset", facts.version.dataset),
    )


def _split(recorded: str | None) -> str | None:
    """The run's cut as a sentence; what is none of ours stays as it is."""
    try:
        cut = json.loads(recorded or "null")
        if cut["by"] == "time":
            validation, holdout = _moment(cut["validation_us"]), _moment(cut["holdout_us"])
            column = cut["column"]
            return f"By {column}: training rows before {validation}, validation from then on, holdout from {holdout}"
        shares = cut["validation_share"], cut["holdout_share"]
        names = ", ".join(map(str, cut["columns"]))
        return (
            f"By {cut['by']}: rows with equal {names} share a side, picked by a hash; {shares[1]:.3g} of them are "
            f"holdout, {shares[0]:.3g} validation, the others training"
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return recorded


def _moment(microseconds: int) -> str:
    """To the day where it begins there, else to the second; UTC."""
    at = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
    return f"{at:%Y-%m-%d}" if at.time() == time.min else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _training(of: Lineage) -> Iterator[Block]:
    run, data = of.run or {}, of.data
    rows = (run.get("metrics") or {}).get("rows.train")
    if data is None:
        yield from _table(("Training rows", _shown(rows)))
        yield Text(f"Not recorded: {of.missing.get('dataset', 'the dataset version is not there')}.", soft=True)
        return
    made_by = data["made_by"] or {}
    yield from _table(
        ("Dataset", f"{data['dataset']}, {data['rows']:,} rows, {data['committed']}"),
        ("Content hash", data["content_hash"]),
        ("Training rows", _shown(rows)),
        ("Made by", " ".join(filter(None, (made_by.get("verb"), made_by.get("decision"))))),
        ("Sources", ", ".join(map(str, data["uris"] or []))),
        (
            "Holds rows of versions",
            ", ".join(f"{p['version']} ({p['rows']:,} rows)" for p in data["parents"]) or "none",
        ),
    )


def _analyses(facts: Facts) -> Iterator[Block]:
    gates = _gates(facts)
    checks = [c for c in checks_of(gates) if not _of(c, (*_SLICES, *_FAIRNESS))]
    if checks:
        yield Text(f"The gates' verdict is {gates.get('verdict')}.")
        rows = tuple((_title(c), _shown(c.get("verdict")), _shown(c.get("detail"))) for c in checks)
        yield Table(rows, ("check", "verdict", "why"))
    else:
        yield Text("Not recorded.", soft=True)
    if facts.run is not None and facts.run.plots:
        yield Pictures(tuple((name.replace("_", " "), body) for name, body in facts.run.plots.items()))


def _fairness(facts: Facts) -> Iterator[Block]:
    found = list(_checks(facts, _FAIRNESS))
    if not found:
        yield Text("Not recorded: the project file asks for no fairness gate.", soft=True)
        return
    rows = tuple((_title(c), _shown(c.get("verdict")), _shown(c.get("detail"))) for c in found)
    yield Table(rows, ("measure", "verdict", "why"))


def _caveats(facts: Facts, about: About) -> Iterator[Block]:
    if about.caveats:
        yield Text(about.caveats)
    run = facts.run
    warned = [(n.removeprefix("warning."), v) for n, v in run.tags.items() if n.startswith("warning.")] if run else []
    open_checks = [c for c in checks_of(_gates(facts)) if c.get("verdict") != "pass"]
    warned += [(f"{_title(c)} ({c.get('verdict')})", _shown(c.get("detail"))) for c in open_checks]
    warned += [(f"{name} is not on record", why) for name, why in facts.missing.items()]
    if facts.run is not None and facts.run.tags.get("git.dirty") == "true":
        warned.append(("code", "it was trained with changes that are not committed"))
    if warned:
        yield Heading("Recorded warnings")
        yield Table(tuple(warned))
    elif not about.caveats:
        yield Text("None are recorded, and the project file gives none.", soft=True)


def _provenance(of: Lineage) -> Iterator[Block]:
    environment, run, code = of.environment or {}, of.run or {}, of.code or {}
    changed = {True: ", with changes", False: "", None: ", changes not recorded"}[code.get("dirty")] if code else ""
    cause = of.decision
    rollouts = [f"{r['id']}: {r['phase']}" for r in of.rollouts] + [f"{m['what']}: {m['why']}" for m in of.moves]
    yield from _table(
        ("Run", run.get("id")),
        ("Search", ", ".join(f"{n} {how}" for how, n in sorted((run.get("trials") or {}).items()))),
        ("Seed", run.get("seed")),
        ("Code", f"{code['commit']}{changed}" if code else None),
        ("Configuration", run.get("config_sha256")),
        ("Python", environment.get("python")),
        ("Cause", f"{cause['trigger']}: {cause['reason']}" if cause is not None else "trained by hand"),
        ("Approvals", "; ".join(f"{a['who']}, {a['at']}: {a['why']}" for a in of.approvals["given"]) or "none"),
        ("Rollouts", "; ".join(rollouts) or "none"),
    )


# from records to cells


def _gates(facts: Facts) -> Mapping[str, Any]:
    return (facts.run.gates if facts.run is not None else None) or {}


def _checks(facts: Facts, of: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    yield from (check for check in checks_of(_gates(facts)) if _of(check, of))


def _of(check: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return str(check.get("name", "")).partition(".")[0] in names


def _title(check: Mapping[str, Any]) -> str:
    return naming.check(str(check.get("name", "")))


def _given(text: str | None) -> Iterator[Block]:
    yield Text(text) if text else Text("The project file does not say.", soft=True)


def _table(*rows: tuple[str, str | None]) -> Iterator[Block]:
    """The rows that are on record, and a line that names the others."""
    there = tuple((name, value) for name, value in rows if value)
    if there:
        yield Table(there)
    absent = [name for name, value in rows if not value]
    if absent:
        yield Text(f"Not recorded: {', '.join(absent)}.", soft=True)


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _between(estimate: Mapping[str, Any]) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    return "not resolved" if low is None or high is None else f"{_shown(low)} to {_shown(high)}"


def _cell(name: str, value: object) -> str:
    """A slice's number; differences carry their sign."""
    if name in ("value", "lower", "upper") and isinstance(value, int | float) and math.isfinite(value):
        return f"{value:+.4f}"
    return _shown(value)


def _shown(value: object) -> str:
    """A number with the digits that say something."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "undefined"
    if float(value).is_integer() and (isinstance(value, int) or abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
