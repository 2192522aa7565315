"""Requests to be forgotten: what an order is, and what it sieves out of later arrivals.

An order is kept beside the prediction log from before its first deed, without the keys: only keyed hashes of them, by
which an order that was killed is recognised and resumed, and by which collectors sieve what reaches the log later:
rows that were still in a spool, and labels and numbers of predictions that are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.redaction import Removed
from mlops_ray.serving.places import log_uri

_FOLDER = "forgotten"
_LATE = ("labels", "values")
"""Tables whose rows are about what was before they came."""


def pseudonym(secret: bytes, text: str) -> str:
    """A keyed hash of a key or a prediction id: recognises it, and tells nobody without the secret. 32 digits.

    Source: BLAKE2b in its keyed mode (RFC 7693)."""
    return hashlib.blake2b(text.encode(), key=secret[:64], digest_size=16, person=b"forgotten").hexdigest()


@dataclass(frozen=True)
class Order:
    """One request, about one or several keys. at, done: seconds since the epoch; done None while under way.

    keys, ids: pseudonyms of the keys, and of the predictions that were theirs. removed: per table what went so far.
    """

    id: str
    at: float
    who: str
    why: str
    keys: tuple[str, ...]
    ids: tuple[str, ...] = ()
    removed: Mapping[str, Removed] = field(default_factory=dict)
    done: float | None = None

    @property
    def mark(self) -> str:
        """Stands in the names of files that are written in its course."""
        return f"f{self.id[:8]}"

    def after(self, table: str, removed: Removed) -> Order:
        """The order once that went, too."""
        return replace(self, removed={**self.removed, table: self.removed.get(table, Removed()) + removed})

    def with_ids(self, ids: Iterable[str]) -> Order:
        """The order once it knows these predictions (pseudonyms)."""
        return replace(self, ids=tuple(sorted({*self.ids, *ids})))

    @classmethod
    def parse(cls, content: bytes) -> Order:
        """The order that `save` wrote."""
        body = json.loads(content)
        removed = {t: Removed(r["rows"], r["files"], tuple(r["versions"])) for t, r in body.pop("removed").items()}
        return cls(**{**body, "keys": tuple(body["keys"]), "ids": tuple(body["ids"]), "removed": removed})


def orders(project: Project) -> list[Order]:
    """Every order there was, oldest first."""
    uri = log_uri(project)
    contents = (lake.read_sidecar(uri, _FOLDER, name) for name in lake.sidecars(uri, _FOLDER))
    return sorted((Order.parse(content) for content in contents if content is not None), key=lambda order: order.at)


def save(project: Project, order: Order) -> None:
    """Keeps the order as it is now, in the place of what it was; all at once."""
    lake.write_sidecar(log_uri(project), _FOLDER, f"{order.id}.json", json.dumps(asdict(order)).encode())


class Register:
    """What was ordered to be forgotten, as a collector knows it: a look at a folder each time, no more while nothing is
    new there."""

    def __init__(self, project: Project, secret: Callable[[], bytes]) -> None:
        """Args: secret: the project's, asked for once there is an order."""
        self._project, self._secret = project, secret
        self._seen: dict[str, int] = {}
        self._known = Forgotten(b"", [])

    def sieved(self, tables: Mapping[str, Mapping[int, pa.Table]]) -> dict[str, dict[int, pa.Table]]:
        """Arrivals by table and segment without those that were forgotten.

        Predictions that never reach the log are noted first, as an order does with those that it takes out: their
        labels may still be on their way. The same arrivals again give the same note.
        """
        forgotten = self.now()
        gone = [i for part in tables["predictions"].values() for i in forgotten.ids_of_keys(part)]
        if gone:
            ids = tuple(sorted(pseudonym(self._secret(), i) for i in gone))
            note = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
            save(self._project, Order(note, 0.0, "collector", "sieved", (), ids, {}, 0.0))
            forgotten = self.now()
        late_s = self._project.monitoring.label_horizon_s
        return {
            name: {n: forgotten.kept(part, grace_s=late_s if name in _LATE else 0.0) for n, part in parts.items()}
            for name, parts in tables.items()
        }

    def now(self) -> Forgotten:
        """What was ordered until now."""
        there = lake.sidecars(log_uri(self._project), _FOLDER)
        if there != self._seen:
            self._known, self._seen = Forgotten(self._secret(), orders(self._project)), there
        return self._known


def opened(project: Project, secret: bytes, keys: Sequence[str], *, who: str, why: str, now: float) -> Order:
    """The order about these keys that is still under way, or a new one."""
    hashed = tuple(sorted(pseudonym(secret, key) for key in keys))
    for order in orders(project):
        if order.done is None and order.keys == hashed:
            return order
    identity = pseudonym(secret, "\n".join((f"{now!r}", *hashed)))[:16]
    return Order(identity, now, who, why, hashed)


# What arrives later ---------------------------------------------------------------------------------------------------


class Forgotten:
    """Sieves arrivals by all orders there were. Python hashes some million ids a second, and only while there are any.

    A row of a forgotten key is dropped when it was recorded before the order; somebody who comes back is a new one. A
    label of a forgotten prediction is dropped whenever it comes.
    """

    def __init__(self, secret: bytes, orders: Iterable[Order]) -> None:
        self._secret = secret
        self._keys: dict[str, float] = {}
        self._ids: set[str] = set()
        for order in orders:
            self._ids.update(order.ids)
            for key in order.keys:
                self._keys[key] = max(order.at, self._keys.get(key, order.at))

    def kept(self, rows: pa.Table, *, grace_s: float = 0.0) -> pa.Table:
        """`rows` of a table of the log without those that were forgotten.

        Args: rows: with `at`, and `key` or `prediction_id` where they have one. grace_s: for how long after the order
            rows of a forgotten key still are about what was before it: labels come late.
        """
        if not rows.num_rows or not self._keys:
            return rows
        gone = np.zeros(rows.num_rows, dtype=bool)
        if "prediction_id" in rows.column_names:
            gone |= self.theirs(rows["prediction_id"])
        if "key" in rows.column_names:
            gone |= self._of_keys(rows, grace_s)
        return rows.filter(pa.array(~gone)) if gone.any() else rows

    def ids_of_keys(self, predictions: pa.Table) -> list[str]:
        """Prediction ids of rows that are dropped for their keys."""
        if not predictions.num_rows or not self._keys:
            return []
        found: list[str] = predictions.filter(pa.array(self._of_keys(predictions, 0.0)))["prediction_id"].to_pylist()
        return found

    def _of_keys(self, rows: pa.Table, grace_s: float) -> NDArray[np.bool_]:
        at = rows["at"].cast(pa.int64()).to_numpy() / 1e6
        limits = self._each(rows["key"], lambda key: self._keys.get(pseudonym(self._secret, key), -np.inf))
        return np.asarray(at <= limits + grace_s, dtype=bool)

    def theirs(self, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which prediction ids belong to predictions that were forgotten. Shape (n,)."""
        if not self._ids:
            return np.zeros(len(ids), dtype=bool)
        return self._each(ids, lambda i: float(pseudonym(self._secret, i) in self._ids)) > 0

    @staticmethod
    def _each(texts: pa.ChunkedArray, value: Callable[[str], float]) -> NDArray[np.float64]:
        """`value` of each text, worked out once for each different one; of null -inf. Shape (n,)."""
        coded = texts.combine_chunks().dictionary_encode()
        values = np.array([*map(value, coded.dictionary.to_pylist()), -np.inf])
        codes = pc.fill_null(coded.indices, len(values) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(values[codes], dtype=np.float64)
