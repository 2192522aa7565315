from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlops_ray.errors import DataError
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.trials import FoldData, Folder, TrialEnded, digest

TRIAL = TrialEnded(
    3, Choice(1, "a:B", {"x": None, "y": 0.1, "z": [1, 2]}), "done", 0.25, steps=((1, 0.5), (10, 0.25)), seconds=2.0,
    started=5.0, ended=7.0, rungs=((0.1, 0.5), (1.0, 0.25)), rounds=10, refit={"n": 10}, at_s=4.0,
)  # fmt: skip


def test_a_trial_survives_its_file() -> None:
    assert TrialEnded.from_json(TRIAL.to_json()) == TRIAL
    assert TRIAL.fitting == Choice(1, "a:B", {"x": None, "y": 0.1, "z": [1, 2], "n": 10})


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_gives_back_what_it_kept_by_number(tmp_path: Path, scheme: str) -> None:
    address = f"{scheme}{tmp_path}/search"
    folder = Folder(address)
    assert folder.open({"rows": "a"}) == ()
    folder.keep(TRIAL)
    folder.keep(replace(TRIAL, number=1))
    (tmp_path / "search/trials/000009.json.part").write_text("{", encoding="utf-8")  # a driver died while writing
    assert [t.number for t in Folder(address).open({"rows": "a"})] == [1, 3]
    assert Folder(address).open({"rows": "a"})[1] == TRIAL


def test_a_folder_of_another_search_or_with_a_foreign_file_is_refused(tmp_path: Path) -> None:
    Folder(str(tmp_path)).open({"rows": "a", "job": 1})
    with pytest.raises(DataError, match=r"another search \(rows differ\)"):
        Folder(str(tmp_path)).open({"rows": "b", "job": 1})
    (tmp_path / "trials/x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="is no record of a trial"):
        Folder(str(tmp_path)).open({"rows": "a", "job": 1})


@pytest.mark.parametrize("left", [b"", b"\0" * 200, TRIAL.to_json().encode()[:90], b"\xff\xfe"])
def test_a_record_that_a_loss_of_power_cut_is_left_out_and_its_trial_runs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    folder = Folder(str(tmp_path))
    folder.open({"rows": "a"})
    folder.keep(TRIAL)
    folder.keep(replace(TRIAL, number=4))
    (tmp_path / "trials/000004.json").write_bytes(left)
    assert folder.open({"rows": "a"}) == (TRIAL,)
    assert "000004.json is cut" in caplog.text
    assert "runs again" in caplog.text
    folder.keep(replace(TRIAL, number=4))
    assert [t.number for t in folder.open({"rows": "a"})] == [3, 4]


def test_a_folder_that_lost_its_name_is_taken_only_while_it_is_empty(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.open({"rows": "a"})
    (tmp_path / "search.json").write_bytes(b"")
    assert folder.open({"rows": "b"}) == ()
    folder.keep(TRIAL)
    (tmp_path / "search.json").write_bytes(b'{"ro')
    with pytest.raises(DataError, match="use a new name"):
        folder.open({"rows": "b"})


def test_a_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.open({})
    record, synced = tmp_path / "trials/000003.json", []

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_size, record.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    folder.keep(TRIAL)
    assert synced == [(len(TRIAL.to_json()), False)]
    assert record.exists()


def test_a_digest_tells_rows_labels_weights_and_cuts_apart() -> None:
    matrix = np.arange(8.0).reshape(4, 2)
    one = FoldData(matrix, 2, np.arange(4))
    others = [
        replace(one, matrix=matrix + 1),
        replace(one, n_train=3),
        replace(one, y=np.arange(4)[::-1]),
        replace(one, weights=np.ones(4)),
    ]
    found = {digest([one]), *(digest([other]) for other in others), digest([one, one])}
    assert len(found) == 6
    assert digest([replace(one, matrix=matrix.copy())]) == digest([one])


def test_rows_are_cut_without_a_copy() -> None:
    matrix = np.arange(8.0).reshape(4, 2)
    fold = FoldData(matrix, 3, np.arange(4), np.arange(4.0), matrix.astype("float32"))
    train, others = fold.rows(single=False)
    assert np.shares_memory(train, matrix)
    assert (train.shape, others.shape) == ((3, 2), (1, 2))
    assert fold.rows(single=True)[0].dtype == np.float32
    assert fold.train_weights is not None
    assert fold.other_weights is not None
    assert (fold.train_weights.tolist(), fold.other_weights.tolist()) == ([0, 1, 2], [3])
