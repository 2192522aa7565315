"""Datasets on Ray: from a source to a version, from a version to feature statistics."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from mlops_ray.config import Column, Project
from mlops_ray.data import lake, splits
from mlops_ray.data.content import NO_ROWS, RowHash, row_hash
from mlops_ray.data.features import statistics
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.lake import DataFile, DatasetVersion
from mlops_ray.data.lineage import Code, last_prepared, lineage
from mlops_ray.data.rules.expectations import QUARANTINE, Report
from mlops_ray.data.rules.facts import Facts
from mlops_ray.data.rules.findings import Finding, conclude
from mlops_ray.data.rules.on_ray import Part, Progress, compare, opened, passed, quarantine_uri, settle, table_uri
from mlops_ray.data.rules.report import render
from mlops_ray.data.schema import arrow_schema, conform
from mlops_ray.data.splits import Cut, FoldCut
from mlops_ray.errors import DataError, DataRefused

REPORT_JSON, REPORT_HTML, FACTS = "validation.json", "validation.html", "facts.json"
"""Names of what is kept beside a dataset version: what validation saw, for machines and people, and the facts that the
next version is compared with."""


@dataclass(frozen=True)
class Validated:
    """What validation saw: counts per rule, facts of the kept rows, a finding per expectation, and all as a page."""

    report: Report
    facts: Facts
    findings: tuple[Finding, ...]
    page: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, without facts and page."""
        return {**self.report.to_dict(), "findings": [finding.to_dict() for finding in self.findings]}

    def files(self) -> dict[str, bytes]:
        """What is kept beside a dataset version, by name."""
        return {
            FACTS: json.dumps(self.facts.to_dict()).encode(),
            REPORT_JSON: json.dumps(self.to_dict(), indent=1).encode(),
            REPORT_HTML: self.page.encode(),
        }


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made (or found), and what validation saw on the way."""

    dataset: DatasetVersion
    validated: Validated

    @property
    def report(self) -> Report:
        """Counts per rule."""
        return self.validated.report


@dataclass(frozen=True, eq=False)
class Examined:
    """What `examine` saw, and the feature statistics of the rows that keep the rules."""

    validated: Validated
    statistics: Partial

    @property
    def report(self) -> Report:
        """Counts per rule."""
        return self.validated.report


def _silent(done: int, total: int) -> None:
    """No progress shown."""


def prepare(project: Project, *, now: float, on_progress: Progress = _silent) -> Prepared:
    """Reads the source, validates it and commits the good rows as a dataset version, in one execution.

    The same rows as in an existing version, in whatever order, write nothing: that version is returned. Bad rows go to
    the quarantine table, once per set of rows. Of rows that repeat a key the one with the smallest content hash stays,
    so that the outcome does not hang on order. `on_progress(rows read, rows in all)` follows the shards; 0 in all when
    nobody knows before the end. `now`: seconds since the epoch, for expectations about freshness. Ray must be running.
    Raises: DataError when the source cannot be read, or a column is missing or of another dtype altogether; DataRefused
    when more than `max_bad_share` of the rows are bad, fewer than `min_rows` are good, or an expectation with `on_fail:
    stop` is broken (bad rows stand in quarantine then). The dataset's table is untouched in all these cases.
    """
    run = f"files-{uuid.uuid4().hex[:16]}"
    try:
        return _prepare(project, run, now, on_progress)
    except BaseException:
        # Also on Ctrl-C: files that no commit names are nobody's.
        for uri in (table_uri(project), quarantine_uri(project)):
            lake.remove_uncommitted(uri, run)
        raise


def _prepare(project: Project, run: str, now: float, on_progress: Progress) -> Prepared:
    source = opened(project)
    parts = passed(source, project, run, on_progress, dry=False)
    parts, said = settle(project, run, parts, compare(project, parts))
    validated = _validated(project, parts, said, now)
    origin = _lineage(project, source.uris)
    bad_files = [file for part in parts for file in part.bad]
    if bad_files:
        bad_hash = sum((part.bad_hash for part in parts), NO_ROWS)
        _commit(quarantine_uri(project), run, bad_files, QUARANTINE, bad_hash, origin, append=True)
    good_hash = sum((part.good_hash for part in parts), NO_ROWS)
    if reasons := refusals(project, validated):
        for name, kept in validated.files().items():
            lake.write_sidecar(quarantine_uri(project), run, name, kept)
        page = lake.sidecar_path(quarantine_uri(project), run, REPORT_HTML)
        raise DataRefused(project.project, reasons, str(validated.report), validated.to_dict(), page)
    good_files = [part.good for part in parts if part.good is not None]
    schema = arrow_schema(project.columns)
    version = _commit(table_uri(project), run, good_files, schema, good_hash, origin, beside=validated.files())
    lake.choose(table_uri(project), version)
    return Prepared(version, validated)


def examine(project: Project, *, now: float, on_progress: Progress = _silent) -> Examined:
    """Reads and validates the source as `prepare` does, and learns feature statistics; nothing is committed.

    Rows that repeat a key are counted as bad, but enter facts and statistics all the same. Ray must be running.
    Raises: DataError when the source cannot be read, or has no row that keeps the rules.
    """
    run = f"files-{uuid.uuid4().hex[:16]}"
    try:
        parts = passed(opened(project), project, run, on_progress, dry=True)
        parts, said = settle(project, run, parts, compare(project, parts))
    finally:
        lake.remove_uncommitted(table_uri(project), run)
    found = [part.statistics for part in parts if part.statistics is not None]
    if not found:
        raise DataError(project.project, "the source has no rows")
    return Examined(_validated(project, parts, said, now), functools.reduce(lambda a, b: a + b, found))


def _validated(project: Project, parts: Sequence[Part], said: Report, now: float) -> Validated:
    report = sum((part.report for part in parts), said)
    facts = sum((part.facts for part in parts), Facts())
    before = last_prepared(table_uri(project))
    kept = lake.read_sidecar(table_uri(project), before.content_hash, FACTS) if before is not None else None
    previous = Facts.from_dict(json.loads(kept)) if kept is not None else None
    findings = conclude(project, report, facts, previous=previous, now=now)
    return Validated(report, facts, findings, render(project, report, findings, facts, previous=previous))


def snapshot(
    project: Project, table: pa.Table, lineage: Mapping[str, Any], columns: Sequence[Column] | None = None
) -> DatasetVersion:
    """Commits the rows of `table` as a dataset version, without validation.

    Args: columns: those to keep (all that the project declares, unless given); others are dropped.

    The same rows as in an existing version write nothing. Needs no Ray.
    Raises: DataError when a column is missing, or cells are not of their column's dtype.
    """
    rows, uncast = conform(table, columns or project.columns)
    if uncast:
        raise DataError(project.project, f"cells do not fit their columns' dtypes: {sorted(uncast)}")
    uri, content, run = table_uri(project), row_hash(rows), f"files-{uuid.uuid4().hex[:16]}"
    if (known := lake.find(uri, content.hex())) is not None:
        return known
    try:
        file = lake.write_file(uri, f"{run}/part-0.parquet", rows)
        return _commit(uri, run, [file], rows.schema, content, lineage)
    except BaseException:
        lake.remove_uncommitted(uri, run)
        raise


def fit_features(
    project: Project, dataset: DatasetVersion, cut: Cut | FoldCut, parts: Sequence[int]
) -> tuple[Partial, ...]:
    """Feature statistics of each of the `parts` (sides of `cut`), in that order: one pass, one task per file.

    Raises: DataError when a part holds no rows.
    """
    tasks = [_fold_file.remote(project, dataset.uri, path, cut, tuple(parts)) for path in lake.files(dataset)]
    folded: list[tuple[Partial, ...]] = ray.get(tasks)
    totals = tuple(functools.reduce(lambda a, b: a + b, partials) for partials in zip(*folded, strict=True))
    for total, part in zip(totals, parts, strict=True):
        if total.n == 0:
            raise DataError(dataset.uri, f"version {dataset.version} has no row for {_named(cut, part)}; see `split:`")
    return totals


def _named(cut: Cut | FoldCut, part: int) -> str:
    return f"part {part} of the cross-validation" if isinstance(cut, FoldCut) else splits.NAMES[part]


@ray.remote
def _fold_file(project: Project, uri: str, path: str, cut: Cut | FoldCut, parts: Sequence[int]) -> tuple[Partial, ...]:
    needed = [*cut.columns, *project.features.inputs]
    if project.features.target_encoded:
        needed += [project.target, project.key]
    table = lake.read_file(uri, path, list(dict.fromkeys(needed)))
    sides = splits.assign(cut, table)
    ends = {"target": project.target, "key": project.key}
    return tuple(statistics.fold(project.features, table.filter(pa.array(sides == part)), **ends) for part in parts)


# Committing -----------------------------------------------------------------------------------------------------------


def refusals(project: Project, validated: Validated) -> tuple[str, ...]:
    """Why these rows make no dataset version: too many bad, too few good, or a broken expectation that stops."""
    rules, report = project.validation, validated.report
    reasons = []
    if report.bad_share > rules.max_bad_share:
        reasons.append(
            f"{report.bad_share:.2%} of the rows are bad, validation.max_bad_share allows {rules.max_bad_share:.2%}"
        )
    if report.n_kept < rules.min_rows:
        reasons.append(f"{report.n_kept} good rows, validation.min_rows asks for {rules.min_rows}")
    return (*reasons, *(str(finding) for finding in validated.findings if finding.stops))


def _commit(
    uri: str,
    run: str,
    files: Sequence[DataFile],
    schema: pa.Schema,
    content: RowHash,
    lineage: Mapping[str, Any],
    *,
    append: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> DatasetVersion:
    """The version with this content: the one that is there, or a new one, with what is kept `beside` it, by name.

    Removes the run's files that the version lacks."""
    version = lake.find(uri, content.hex())
    if version is None:
        for name, kept in (beside or {}).items():
            lake.write_sidecar(uri, content.hex(), name, kept)
        version = lake.commit(uri, files, schema, content.hex(), lineage, append=append)
    lake.remove_uncommitted(uri, run)
    return version


def _lineage(project: Project, uris: Sequence[str]) -> dict[str, Any]:
    function = project.source.function
    spec = importlib.util.find_spec(function.replace(":", ".").rpartition(".")[0]) if function is not None else None
    origin = spec.origin if spec is not None else None
    return lineage(
        project,
        made_by={"verb": "prepare"},
        uris=uris,
        code=working_code(),
        function_sha256=hashlib.sha256(Path(origin).read_bytes()).hexdigest() if origin is not None else None,
    )


def working_code() -> Code | None:
    """Commit and dirtiness of the checkout that the process stands in; None outside of one, or without `git`."""
    ask = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if commit == "(initial)" else Code(commit, any(not line.startswith("#") for line in lines))
