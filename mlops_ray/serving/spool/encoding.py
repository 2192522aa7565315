"""Records as bytes, and bytes as records: no files.

A record is a JSON head and, behind it, its numbers as they lie in memory. Numbers cost nothing to write that way, and
come back bit for bit, NaN and infinity included. One form serves a request of one row and one of 100,000.

A frame is a record behind its kind, length and checksum. The checksum is seeded by a number that only its file knows:
bytes that a client chose are no frame of it, wherever they come to lie.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.records import Labelled, Scored, Shadowed, Trial, Watermark

Framed = Scored | Shadowed | Labelled | Watermark
"""What stands in a frame of its own; counts of rows that were not captured stand in their file's head instead."""

MAGIC = b"\xf5\xd9MR"
"""Where a frame begins. 0xF5 is no byte of UTF-8, so no text holds it."""
_FRAME = struct.Struct("<4sIIB")
_SIZE = struct.Struct("<I")
_SCORED, _SHADOWED, _LABELLED, _WATERMARK = range(1, 5)
_JSON = orjson.OPT_SERIALIZE_NUMPY
_F8, _F4, _I8 = np.dtype("<f8"), np.dtype("<f4"), np.dtype("<i8")


@dataclass(frozen=True)
class Damage:
    """Bytes [start, stop) of a file that are no frame.

    torn: they begin as a frame and end with the file: a write that was cut off, whose record was never acknowledged.
    """

    start: int
    stop: int
    torn: bool


def framed(record: Framed, seed: int) -> bytes:
    """The record as a frame of the file with that seed. Raises: TypeError for text that is not UTF-8."""
    return frame(*encode(record), seed)


def frame(kind: int, payload: bytes, seed: int) -> bytes:
    """The same of what `encode` made of the record."""
    check = zlib.crc32(payload, zlib.crc32(_FRAME.pack(b"", len(payload), 0, kind), seed))
    return _FRAME.pack(MAGIC, len(payload), check, kind) + payload


def frames(data: bytes, start: int, seed: int) -> Iterator[Framed | Damage]:
    """The records in `data` from byte `start` on, and what lies between them that is none.

    Behind damage the next sound frame is looked for, so that one bad byte costs one record.
    """
    view, at = memoryview(data), start
    while at < len(data):
        found = _frame_at(view, at, seed)
        if found is not None:
            record, at = found
            yield record
            continue
        began, at = at, data.find(MAGIC, at + 1)
        while at != -1 and (found := _frame_at(view, at, seed)) is None:
            at = data.find(MAGIC, at + 1)
        if at == -1:
            yield Damage(began, len(data), torn=_cut_off(view[began:]))
            return
        yield Damage(began, at, torn=False)


def _cut_off(rest: memoryview) -> bool:
    """Whether these last bytes of a file are the beginning of a frame."""
    if len(rest) < _FRAME.size:
        return MAGIC.startswith(bytes(rest[: len(MAGIC)]))
    magic, length, _, _ = _FRAME.unpack_from(rest)
    return bool(magic == MAGIC and _FRAME.size + length > len(rest))


def _frame_at(view: memoryview, at: int, seed: int) -> tuple[Framed, int] | None:
    """The record whose frame begins at byte `at`, and where the next one would; None when there is none to trust."""
    if len(view) - at < _FRAME.size:
        return None
    magic, length, check, kind = _FRAME.unpack_from(view, at)
    stop = at + _FRAME.size + length
    if magic != MAGIC or stop > len(view):
        return None
    payload = view[at + _FRAME.size : stop]
    if zlib.crc32(payload, zlib.crc32(_FRAME.pack(b"", length, 0, kind), seed)) != check:
        return None
    try:
        return decode(kind, payload), stop
    except (ValueError, KeyError, TypeError, struct.error):  # sound bytes of a kind, or a form, of another release
        return None


def encode(record: Framed) -> tuple[int, bytes]:
    """Kind and bytes of a record. Raises: TypeError for text that is not UTF-8."""
    if isinstance(record, Scored):
        return _SCORED, _scored(record)
    if isinstance(record, Shadowed):
        head = {"id": record.id, "at": record.at, "v": record.stable, "w": _width(record.stable_scores)}
        trial = _trial_head(record.trial)
        return _SHADOWED, _packed(head | {"c": trial}, _f8(record.stable_scores), *_trial_parts(record.trial))
    if isinstance(record, Labelled):
        labels = record.labels
        numbers = labels.values.dtype.kind != "O"
        head = {"at": record.at, "i": labels.ids, "k": labels.keys, "y": None if numbers else labels.values.tolist()}
        if labels.numbers:
            head["n"] = list(labels.numbers)
        told = [_f8(values) for values in labels.numbers.values()]
        return _LABELLED, _packed(head, _f8(labels.times), *([_f8(labels.values)] if numbers else []), *told)
    return _WATERMARK, _packed({"at": record.at, "t": record.time})


def decode(kind: int, payload: memoryview) -> Framed:
    """The record with these bytes; its arrays are views of them.

    Raises: ValueError, KeyError, TypeError or struct.error when they are no such record."""
    (size,) = _SIZE.unpack_from(payload)
    head = orjson.loads(payload[_SIZE.size : _SIZE.size + size])
    parts = _Parts(payload, _SIZE.size + size)
    if kind == _SCORED:
        record: Framed = _read_scored(head, parts)
    elif kind == _SHADOWED:
        k, width = head["c"]["k"], head["w"]
        scores = parts.scores(k, width)
        record = Shadowed(head["id"], head["at"], head["v"], scores, _read_trial(head["c"], parts, width))
    elif kind == _LABELLED:
        ids, keys, classes, n = tuple(head["i"]), tuple(head["k"]), head["y"], len(head["i"])
        if len(keys) != n or (classes is not None and len(classes) != n):
            raise ValueError("labels of different lengths")
        times = parts.take(_F8, n)
        values = parts.take(_F8, n) if classes is None else np.array(classes, dtype=object)
        told = parts.columns(_F8, n, head.get("n", ()))
        record = Labelled(head["at"], Labels(ids, keys, values, times, told))
    elif kind == _WATERMARK:
        record = Watermark(head["at"], head["t"])
    else:
        raise ValueError(f"no kind {kind}")
    parts.end()
    return record


class _Parts:
    """Arrays that lie one behind the other in a payload, from byte `at` on."""

    def __init__(self, payload: memoryview, at: int) -> None:
        self._payload, self._at = payload, at

    def take(self, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
        """The next `n` values."""
        found = np.frombuffer(self._payload, dtype, n, self._at) if n else np.empty(0, dtype)
        self._at += found.nbytes
        return found

    def columns(self, dtype: np.dtype[Any], n: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The next columns of `n` values each: one array cut up, which takes a tenth of what one for each would."""
        return dict(zip(names, self.take(dtype, n * len(names)).reshape(len(names), n), strict=True))

    def scores(self, n: int, width: int) -> NDArray[np.float64]:
        """The next scores of `n` rows; width 0: one number each, else one for each class."""
        found = self.take(_F8, n * (width or 1))
        return found.reshape(n, width) if width else found

    def end(self) -> None:
        """Raises: ValueError when something is left."""
        if self._at != len(self._payload):
            raise ValueError("bytes are left over")


def _packed(head: Mapping[str, Any], *parts: bytes) -> bytes:
    text = orjson.dumps(head, option=_JSON)
    return b"".join((_SIZE.pack(len(text)), text, *parts))


def _f8(values: NDArray[Any]) -> bytes:
    return values.astype(_F8, copy=False).tobytes()


def _width(scores: NDArray[np.float64]) -> int:
    return 0 if scores.ndim == 1 else scores.shape[1]


def _scored(record: Scored) -> bytes:
    """Head, then times, scores, times among the inputs, each trial's rows and scores, places, numbers among the inputs:
    eight-byte values first. One trial stands in the head as it always did, several as a list."""
    numbers, times, texts = [], [], {}
    f4, f8 = [], []
    for name, values in record.columns.items():
        if values.dtype == np.float32:
            numbers.append(name)
            f4.append(values.tobytes())
        elif values.dtype == np.float64:
            times.append(name)
            f8.append(values.tobytes())
        else:
            texts[name] = values.tolist()
    head: dict[str, Any] = {
        "id": record.id,
        "at": record.at,
        "k": record.keys,
        "n": numbers,
        "t": times,
        "s": texts,
        "v": record.stable,
        "w": _width(record.scores),
        "us": record.score_us,
    }
    parts = [_f8(record.times), _f8(record.scores), *f8]
    if record.repeatable:
        head["r"] = True
    if record.trials:
        heads = [_trial_head(trial) for trial in record.trials]
        head["c"] = heads[0] if len(heads) == 1 else heads
        for trial in record.trials:
            parts += _trial_parts(trial)
    if record.places is not None:
        head["p"] = True
        parts.append(record.places.astype(_I8, copy=False).tobytes())
    return _packed(head, *parts, *f4)


def _read_scored(head: Mapping[str, Any], parts: _Parts) -> Scored:
    keys, width = tuple(head["k"]), head["w"]
    n = len(keys)
    times = parts.take(_F8, n)
    scores = parts.scores(n, width)
    columns = parts.columns(_F8, n, head["t"])
    heads = head.get("c", [])
    trials = [_read_trial(one, parts, width) for one in ([heads] if isinstance(heads, dict) else heads)]
    places = parts.take(_I8, n) if "p" in head else None
    columns |= parts.columns(_F4, n, head["n"])
    for name, values in head["s"].items():
        if len(values) != n:
            raise ValueError(f"{name} has {len(values)} values for {n} rows")
        columns[name] = np.array(values, dtype=object)
    return Scored(
        id=head["id"],
        at=head["at"],
        keys=keys,
        times=times,
        columns=columns,
        stable=head["v"],
        scores=scores,
        score_us=head["us"],
        repeatable="r" in head,
        trials=tuple(trials),
        places=places,
    )


def _trial_head(trial: Trial) -> dict[str, Any]:
    answered = trial.scores is not None
    head: dict[str, Any] = {
        "v": trial.version,
        "r": trial.rollout,
        "s": trial.share,
        "k": len(trial.rows),
        "a": answered,
    }
    if trial.failure:
        head["f"] = trial.failure
    if trial.row_us is not None:
        head["us"] = trial.row_us
    return head


def _trial_parts(trial: Trial) -> list[bytes]:
    rows = trial.rows.astype(_I8, copy=False).tobytes()
    return [rows] if trial.scores is None else [rows, _f8(trial.scores)]


def _read_trial(head: Mapping[str, Any], parts: _Parts, width: int) -> Trial:
    rows = parts.take(_I8, head["k"])
    scores = parts.scores(head["k"], width) if head["a"] else None
    return Trial(head["v"], head["r"], head["s"], rows, scores, head.get("f", ""), head.get("us"))
