"""What goes into a trial and what comes out of it, and the folder in which finished trials outlive a crash."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.fs as fs
import xxhash
from numpy.typing import NDArray

from mlops_ray.config import EarlyStopping, SearchMetric, Task
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.search.candidates import Choice, ClassWeight, Matrix
from mlops_ray.training.target import Labels

Status = Literal["done", "stopped", "failed"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldData:
    """Rows of one split, those that train first.

    matrix: (n, features) float64, the transform fitted on the first `n_train` rows; y: (n,); weights: of rows, (n,).
    single: the same matrix in float32, for estimators that would each make such a copy of their own.
    """

    matrix: Floats
    n_train: int
    y: Labels
    weights: Floats | None = None
    single: NDArray[np.float32] | None = None

    def rows(self, *, single: bool) -> tuple[Matrix, Matrix]:
        """The training rows and the others, without a copy."""
        matrix: Matrix = self.single if single and self.single is not None else self.matrix
        return matrix[: self.n_train], matrix[self.n_train :]

    @property
    def train_weights(self) -> Floats | None:
        """Of the training rows."""
        return None if self.weights is None else self.weights[: self.n_train]

    @property
    def other_weights(self) -> Floats | None:
        """Of the rows that validate."""
        return None if self.weights is None else self.weights[self.n_train :]


@dataclass(frozen=True)
class Job:
    """What all trials of a search have in common. `seed` is every estimator's, so that no score depends on timing."""

    task: Task
    metric: SearchMetric
    seed: int
    n_classes: int | None
    class_weight: ClassWeight
    early_stopping: EarlyStopping | None


@dataclass(frozen=True)
class Order:
    """One trial to run.

    cutoffs: for each rung its share of the full length, and the loss above which the trial is stopped there (None: it
    goes on whatever it shows). limit_s: how long it may take, machine time.
    """

    number: int
    choice: Choice
    cutoffs: tuple[tuple[float, float | None], ...]
    limit_s: float


@dataclass(frozen=True)
class TrialEnded:
    """What became of one trial.

    `done` ran to its end, `stopped` was ended on the way (at a rung, or by the search's time budget), `failed` raised,
    died or took too long, and `error` says why. score: in the metric's own unit, of a stopped trial where it stood.
    steps: (rounds, score) as it went, for an estimator that reports as it goes. rungs: (share of the full length,
    score), what later trials are compared with. rounds: at which `score` was reached; refit: the parameters that say
    so. seconds: machine time. started, ended: seconds since the epoch. cut_short: by the search's time budget, so that
    a resumed search runs it again. at_s: the search's own clock when it ended, over all attempts.
    """

    number: int
    choice: Choice
    status: Status
    score: float | None
    steps: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    error: str | None = None
    rungs: tuple[tuple[float, float], ...] = ()
    rounds: int | None = None
    refit: Mapping[str, Any] = field(default_factory=dict)
    cut_short: bool = False
    at_s: float = 0.0

    @property
    def fitting(self) -> Choice:
        """The choice to fit again: with the number of rounds at which it was best."""
        return replace(self.choice, params={**self.choice.params, **self.refit})

    def to_json(self) -> str:
        """One object, sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrialEnded:
        """Raises: ValueError, KeyError, TypeError for what `to_json` did not write."""
        found = json.loads(text)
        found["choice"] = Choice(**found["choice"])
        for name in ("steps", "rungs"):
            found[name] = tuple((a, b) for a, b in found[name])
        return cls(**found)


class Folder:
    """Finished trials as one small file each, at a path or any address that pyarrow's filesystems take.

    A file appears whole or not at all. `search.json` says which search they belong to.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs: Any = fs.LocalFileSystem()
        self._root = str(Path(address))
        if "://" in address:
            self._fs, self._root = fs.FileSystem.from_uri(address)

    def open(self, fingerprint: Mapping[str, Any]) -> tuple[TrialEnded, ...]:
        """The trials that an earlier attempt at this search finished, by number.

        A record that is empty or cut, by a loss of power, is left out with a warning.
        Raises: DataError when the folder holds those of another search, or a file that is none of ours.
        """
        self._fs.create_dir(f"{self._root}/trials", recursive=True)
        kept = self.trials()
        self._belongs(json.dumps(dict(fingerprint), sort_keys=True, default=str), empty=not kept)
        return kept

    def trials(self) -> tuple[TrialEnded, ...]:
        """The trials that stand here, by number; none where there is no such folder. Raises: DataError."""
        infos = self._fs.get_file_info(fs.FileSelector(f"{self._root}/trials", allow_not_found=True))
        found = [self._trial(info.path) for info in infos if info.extension == "json"]
        return tuple(sorted((trial for trial in found if trial is not None), key=lambda trial: trial.number))

    def _belongs(self, wanted: str, *, empty: bool) -> None:
        path = f"{self._root}/search.json"
        try:
            before = json.loads(self._read(path) or "null")
        except ValueError:  # cut by a loss of power
            before = None
        if before is None and not empty:
            problem = "cannot be read, so nobody knows which search the trials beside it belong to; use a new name"
            raise DataError(path, problem)
        now = json.loads(wanted)
        if before is None:
            self._write(path, wanted)
        elif before != now:
            differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            raise DataError(
                self.address,
                f"holds the trials of another search ({', '.join(differ)} differ); resume that, or use a new name",
            )

    def _trial(self, path: str) -> TrialEnded | None:
        """None for a file that a loss of power left empty or cut: its trial runs again, and writes it anew."""
        try:
            text = self._read(path) or ""
            json.loads(text)
        except ValueError as exc:
            _log.warning("%s is cut (%s); its trial runs again", path, exc)
            return None
        try:
            return TrialEnded.from_json(text)
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(path, f"is no record of a trial ({exc}); remove the file") from exc

    def keep(self, trial: TrialEnded) -> None:
        """Write a finished trial down."""
        self._write(f"{self._root}/trials/{trial.number:06d}.json", trial.to_json())

    def _read(self, path: str) -> str | None:
        if self._fs.get_file_info(path).type is fs.FileType.NotFound:
            return None
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.readall()).decode()

    def _write(self, path: str, text: str) -> None:
        if not isinstance(self._fs, fs.LocalFileSystem):  # an object store shows a whole object or none
            with self._fs.open_output_stream(path) as stream:
                stream.write(text.encode())
            return
        part = Path(f"{path}.part")
        with part.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())  # else the new name may reach the disk before what it names
        part.replace(path)


def digest(folds: Sequence[FoldData]) -> str:
    """Of everything that the folds hold: the rows that a search was made on."""
    hashed = xxhash.xxh3_64()
    for fold in folds:
        hashed.update(repr((fold.matrix.shape, fold.n_train)).encode())
        for part in (fold.matrix, fold.y, fold.weights):
            if part is not None:
                hashed.update(np.ascontiguousarray(part).view(np.uint8).data)
    return hashed.hexdigest()
