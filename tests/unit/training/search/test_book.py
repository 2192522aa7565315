from __future__ import annotations

from pathlib import Path

import pytest

from mlops_ray.training.search.book import Book
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
