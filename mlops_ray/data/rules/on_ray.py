"""The one pass over the shards (rules, files, hashes, facts), and the rules that compare rows of different shards."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mlops_ray.config import Project
from mlops_ray.config.expectations import Columns
from mlops_ray.data import lake, splits
from mlops_ray.data.content import NO_ROWS, RowHash, row_hash, row_hashes
from mlops_ray.data.features.statistics import Partial, fold
from mlops_ray.data.lake import DataFile
from mlops_ray.data.rules import facts as facts_of
from mlops_ray.data.rules import keys
from mlops_ray.data.rules.expectations import Report, check, examples, quarantined
from mlops_ray.data.rules.facts import Facts
from mlops_ray.data.rules.key_rules import NO_LABEL, KeyRule, breaks, key_rules, keyed
from mlops_ray.data.rules.keys import KeyFile
from mlops_ray.data.sources.on_ray import Opened, each, open_source
from mlops_ray.errors import DataError

Rows = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

NOTHING: Rows = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Part:
    """What one shard left behind: its files, and everything about them that merges."""

    report: Report
    facts: Facts
    good: DataFile | None = None
    good_hash: RowHash = NO_ROWS
    bad: tuple[DataFile, ...] = ()
    bad_hash: RowHash = NO_ROWS
    keys: dict[str, KeyFile] = field(default_factory=dict)
    """Per key rule the records of the good rows, in the order of the good file."""
    statistics: Partial | None = None


def table_uri(project: Project) -> str:
    """Where the project's dataset versions stand."""
    return project.storage.path("data", project.project)


def quarantine_uri(project: Project) -> str:
    """Where the rows stand that broke a rule."""
    return project.storage.path("quarantine", project.project)


def opened(project: Project) -> Opened:
    """The project's source. Only declared columns are read, unless an expectation is about all that there are."""
    every = any(isinstance(e, Columns) and e.only for e in project.validation.expectations)
    return open_source(project.source, None if every else project.columns)


def passed(source: Opened, project: Project, run: str, on_progress: Progress, *, dry: bool) -> list[Part]:
    """One execution over the source's shards. `dry`: nothing is written but scratch, and feature statistics are taken.

    Raises: DataError when the source cannot be read or has not the declared columns.
    """
    work = functools.partial(_examine if dry else _write, project=project, run=run)
    parts: list[Part] = []
    n_read = 0
    for part in each(source, work):
        parts.append(part)
        n_read += part.report.n_read
        on_progress(n_read, source.n_rows)
    return parts


# One shard, on a worker: it holds one batch at a time ----------------------------------------------------------------


def _write(batches: Iterator[pa.Table], project: Project, run: str) -> Part:
    name = f"{run}/part-{uuid.uuid4().hex}.parquet"
    good, bad = (lake.FileWriter(uri, name) for uri in (table_uri(project), quarantine_uri(project)))
    report, facts = Report(), Facts()
    good_hash, bad_hash = NO_ROWS, NO_ROWS
    records = _Records(project)
    for batch in batches:
        checked = check(project, batch)
        content = row_hashes(checked.good)
        records.add(checked.good, content[0])
        good.write(checked.good)
        bad.write(checked.bad)
        good_hash += RowHash.of(content)
        bad_hash += hash_of_bad(checked.bad)
        report += checked.report
        facts += checked.facts
    bad_file = bad.close()
    written = records.write(table_uri(project), name)
    return Part(report, facts, good.close(), good_hash, (bad_file,) if bad_file else (), bad_hash, written)


def _examine(batches: Iterator[pa.Table], project: Project, run: str) -> Part:
    name = f"{run}/part-{uuid.uuid4().hex}"
    report, facts = Report(), Facts()
    statistics: Partial | None = None
    records = _Records(project)
    for batch in batches:
        checked = check(project, batch)
        # Which one of repeated rows would stay is of no interest here, so their content needs no hash.
        records.add(checked.good, np.zeros(checked.good.num_rows, dtype=np.uint64))
        report += checked.report
        facts += checked.facts
        partial = fold(project.features, checked.good, target=project.target, key=project.key)
        statistics = partial if statistics is None else statistics + partial
    return Part(report, facts, keys=records.write(table_uri(project), name), statistics=statistics)


class _Records:
    """The key records of one shard, rule by rule."""

    def __init__(self, project: Project) -> None:
        self._rules = key_rules(project)
        self._found: dict[str, list[keys.Records]] = {rule.id: [] for rule in self._rules}
        self._n = 0
        self._cut = None if project.split.by == "time" else _cut(project, ())

    def add(self, good: pa.Table, content: keys.Lanes) -> None:
        for rule in self._rules:
            lanes, payload = keyed(rule, good, content)
            if rule.needs_cut and self._cut is not None:
                # The side hangs on the row alone, and stands for its time.
                payload = (splits.assign(self._cut, good) == splits.HOLDOUT).astype(np.uint64)
            self._found[rule.id].append(keys.records(lanes, payload, self._n))
        self._n += good.num_rows

    def write(self, uri: str, name: str) -> dict[str, KeyFile]:
        return {
            rule: keys.write(uri, f"{name}.{number}.keys", found)
            for number, (rule, found) in enumerate(self._found.items())
        }


def _cut(project: Project, times: npt.ArrayLike) -> splits.Cut:
    names = {"event_time": project.event_time, "key": project.key}
    return splits.cut(project.split, **names, salt=project.project, times=times)


def hash_of_bad(bad: pa.Table) -> RowHash:
    """Content hash of rows of the quarantine."""
    joined = pc.binary_join(bad["rules"], ",")
    return row_hash(bad.set_column(bad.schema.get_field_index("rules"), "rules", joined))


# Rows of different shards --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Rows that break the rules over keys: rule -> part -> rows of its good file; and the rows that a rule judged."""

    broken: dict[str, dict[int, Rows]]
    judged: dict[str, int]


def compare(project: Project, parts: Sequence[Part]) -> Compared:
    """Judges every rule over keys, each over all parts: first those that drop rows, then the others over what stays."""
    broken: dict[str, dict[int, Rows]] = {}
    judged: dict[str, int] = {}
    gone: dict[int, Rows] = {}
    n_good = sum(part.report.n_kept for part in parts)
    # Sorting is stable: rules of a kind stay in the file's order.
    for rule in sorted(key_rules(project), key=lambda rule: not rule.drops):
        owners = [i for i, part in enumerate(parts) if rule.id in part.keys]
        files = [parts[i].keys[rule.id] for i in owners]
        without = [NOTHING if rule.drops else gone.get(i, NOTHING) for i in owners]
        judged[rule.id] = n_good - sum(rows.size for rows in without)
        cut: int | None = None
        if rule.needs_cut:
            cut, judged[rule.id] = _holdout(project, files, without)
            if cut is None:
                continue
        ranges = keys.ranges(files) if files else []
        tasks = [_breaks_in.remote(rule, files, without, first, end, cut) for first, end in ranges]
        found: dict[int, list[Rows]] = {}
        for unlabelled, by_file in ray.get(tasks):
            judged[rule.id] -= unlabelled
            for number, rows in by_file.items():
                found.setdefault(owners[number], []).append(rows)
        broken[rule.id] = {i: np.sort(np.concatenate(rows)) for i, rows in found.items()}
        if rule.drops:
            gone |= {i: np.union1d(gone.get(i, NOTHING), rows) for i, rows in broken[rule.id].items()}
    return Compared(broken, judged)


def _holdout(project: Project, files: Sequence[KeyFile], without: Sequence[Rows]) -> tuple[int | None, int]:
    """Where the holdout begins, as records of leakage say it, and its number of rows; None when nothing can be cut.

    It holds the times of all rows, 8 bytes each, as training will.
    """
    found = [keys.payloads(file, rows) for file, rows in zip(files, without, strict=True)]
    payload = np.concatenate([np.zeros(0, dtype=np.uint64), *found]).view(np.int64)
    begin = 1
    if project.split.by == "time":
        try:
            cut = _cut(project, payload)
        except DataError:
            return None, 0
        assert isinstance(cut, splits.TimeCut)
        begin = cut.holdout
    return begin, int(np.count_nonzero(payload >= begin))


@ray.remote
def _breaks_in(
    rule: KeyRule, files: Sequence[KeyFile], without: Sequence[Rows], first: int, end: int, cut: int | None
) -> tuple[int, dict[int, Rows]]:
    """Records without label, and by number of the file the rows that break the rule, in the buckets [first, end).

    Rows that are gone already (`without`, by file) neither break a rule nor make others break it.
    """
    found, owner = keys.read(files, first, end)
    stays = np.ones(len(found), dtype=bool)
    for i, gone in enumerate(without):
        if gone.size:
            stays &= ~((owner == i) & np.isin(found["row"], gone))
    found, owner = found[stays], owner[stays]
    bad = breaks(rule, keys.starts_group(found), found["payload"], cut)
    rows = {int(number): found["row"][bad & (owner == number)].astype(np.int64) for number in np.unique(owner[bad])}
    unlabelled = 0
    if rule.kind == "no_conflicting_labels":
        left = (keys.payloads(file, gone, first, end) for file, gone in zip(files, without, strict=True))
        unlabelled = sum(int(np.count_nonzero(payload == NO_LABEL)) for payload in left)
    return unlabelled, rows


def settle(project: Project, run: str, parts: Sequence[Part], compared: Compared) -> tuple[list[Part], Report]:
    """`parts` with the rows that a rule over keys drops gone to quarantine, and what else those rules say.

    Only files with such rows are written again; parts without files (a dry run) stay as they are.
    """
    drops = {rule.id for rule in key_rules(project) if rule.drops}
    said = Report(judged={rule: n for rule, n in compared.judged.items() if rule in compared.broken})
    gone: dict[int, dict[str, Rows]] = {}
    for rule, by_part in compared.broken.items():
        if rule in drops:
            for i, rows in by_part.items():
                gone.setdefault(i, {})[rule] = rows
        elif by_part:
            said += Report(
                broken={rule: sum(rows.size for rows in by_part.values())},
                examples={rule: _shown(project, parts, rule, by_part)},
            )
    if all(part.good is None for part in parts):
        for rules in gone.values():
            n = len(functools.reduce(np.union1d, rules.values()))
            broken = {rule: rows.size for rule, rows in rules.items()}
            said += Report(0, -n, n, broken, dict.fromkeys(broken, ()))
        return list(parts), said
    changed = dict(zip(gone, ray.get([_drop.remote(project, run, parts[i], gone[i]) for i in gone]), strict=True))
    return [changed.get(i, part) for i, part in enumerate(parts)], said


def _shown(project: Project, parts: Sequence[Part], rule: str, by_part: Mapping[int, Rows]) -> tuple[str, ...]:
    """Examples of rows that stay, from the first part that has some."""
    i = min(by_part)
    file = parts[i].good
    if file is None:
        return ()
    columns = _columns_of(project, rule)
    table = lake.read_file(table_uri(project), file.path, list(dict.fromkeys([project.key, *columns])))
    return examples(project, table.take(by_part[i]), columns)


def _columns_of(project: Project, rule: str) -> tuple[str, ...]:
    return next(found.columns for found in key_rules(project) if found.id == rule)


@ray.remote
def _drop(project: Project, run: str, part: Part, rules: Mapping[str, Rows]) -> Part:
    """`part` without the rows of its good file that break `rules`; they go to quarantine."""
    assert part.good is not None
    table = lake.read_file(table_uri(project), part.good.path)
    rows = functools.reduce(np.union1d, rules.values())
    keep = np.ones(table.num_rows, dtype=bool)
    keep[rows] = False
    gone, rest = table.take(rows), table.filter(pa.array(keep))
    per_row: list[list[str]] = [[] for _ in rows]
    for rule, found in sorted(rules.items()):
        for i in np.searchsorted(rows, found).tolist():
            per_row[i].append(rule)
    name = f"{run}/part-{uuid.uuid4().hex}.parquet"
    bad = quarantined(project, gone, per_row)
    moved = Report(
        0,
        -len(rows),
        len(rows),
        {rule: found.size for rule, found in rules.items()},
        {rule: examples(project, table.take(found), _columns_of(project, rule)) for rule, found in rules.items()},
    )
    return replace(
        part,
        report=part.report + moved,
        facts=replace(facts_of.fold(project, rest.schema, rest), dtypes=part.facts.dtypes, partly=part.facts.partly),
        good=lake.write_file(table_uri(project), name, rest) if rest.num_rows else None,
        good_hash=row_hash(rest),
        bad=(*part.bad, lake.write_file(quarantine_uri(project), name, bad)),
        bad_hash=part.bad_hash + hash_of_bad(bad),
    )
