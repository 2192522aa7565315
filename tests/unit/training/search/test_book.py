from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray.config import SearchMetric
from mlops_ray.errors import DataError
from mlops_ray.training.search.book import Book, winner
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.trials import Folder, TrialEnded


def trial(number: int, *, cut_short: bool = False) -> TrialEnded:
    return TrialEnded(number, Choice(0, "a:B", {}), "done", 0.5, cut_short=cut_short)


def test_a_trial_is_kept_before_it_is_told_and_one_cut_short_is_only_told(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.open({})
    files: list[tuple[int, int]] = []
    progress: list[tuple[str, int, int]] = []

    def listen(ended: TrialEnded) -> None:
        files.append((ended.number, len(list((tmp_path / "trials").iterdir()))))

    book = Book(folder, 4, [trial(0)], listen, lambda *at: progress.append(at))
    with book:
        for ended in (trial(2), trial(1), trial(3, cut_short=True)):
            book.add(ended)
    assert files == [(2, 1), (1, 2), (3, 2)]
    assert progress == [("search", n, 4) for n in (1, 2, 3, 4)]
    assert [t.number for t in book.trials] == [0, 1, 2, 3]
    assert book.full


def test_what_a_listener_raises_is_raised_by_the_block_and_nothing_more_is_told(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.open({})
    told: list[int] = []

    def listen(ended: TrialEnded) -> None:
        told.append(ended.number)
        raise LookupError

    book = Book(folder, 4, [], listen, lambda *at: None)

    def write() -> None:
        with book:
            for number in range(3):
                book.add(trial(number))

    with pytest.raises(LookupError):
        write()
    assert told == [0]


@pytest.mark.parametrize(("metric", "expected"), [("log_loss", 2), ("roc_auc", 1)])
def test_the_winner_ran_to_its_end_and_is_the_first_of_equal_ones(metric: SearchMetric, expected: int) -> None:
    scores = {1: 0.8, 2: 0.3, 3: 0.3, 4: 0.8}
    full = [replace(trial(number), score=score) for number, score in reversed(scores.items())]
    stopped = [replace(trial(5), score=0.1, status="stopped"), replace(trial(6), score=0.9, status="stopped")]
    failed = replace(trial(0), score=None, status="failed", error="broke")
    assert winner(metric, [*stopped, failed, *full]).number == expected
    assert winner(metric, [failed, *stopped]).number == (5 if metric == "log_loss" else 6)


def test_without_a_score_there_is_no_winner_and_the_error_says_why() -> None:
    failed = replace(trial(0), score=None, status="failed", error="broke")
    for trials, reason, said in (([failed], None, "broke"), ([failed], "lanes end", "lanes end"), ([], None, "max_s")):
        with pytest.raises(DataError, match=said):
            winner("log_loss", trials, reason)
