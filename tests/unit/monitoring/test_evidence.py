"""Evidence gathered block by block: what bets are worth, and that blocks may be cut anyhow."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlops_ray.monitoring.evidence import bets, effects, gains, gathered, weights

known = arrays(np.int64, st.integers(2, 12), elements=st.integers(0, 5_000)).filter(lambda c: c.sum() > 0)


@given(known)
def test_a_bet_is_fair_where_rows_come_as_known(counts: np.ndarray) -> None:
    """The mean factor is 1, so no bet gains on what does not change (Ville 1939)."""
    on, variance = bets(counts)
    p = (counts + 0.5) / (counts + 0.5).sum()
    assert np.allclose((np.exp(on) * p).sum(axis=1), 1)
    assert np.allclose(variance, (on**2 * p).sum(axis=1) - ((on * p).sum(axis=1)) ** 2)
    assert len(on) == len(weights(len(counts)))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_evidence_is_the_same_however_blocks_are_cut_into_looks(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    found, weight = rng.normal(-0.1, 1, (40, 3, 22)), np.full(22, 1 / 22)
    whole, last = gathered(found, weight)
    first, middle = gathered(found[:cut], weight) if cut else (whole[:0], np.zeros((3, 22)))
    second, end = gathered(found[cut:], weight, middle) if cut < 40 else (whole[:0], middle)
    assert np.allclose(np.concatenate([first, second]), whole)
    assert np.allclose(end, last)


def test_rows_that_are_alike_are_worth_less() -> None:
    """Days whose shares wander: what they share is told from their sums; of independent rows nothing is taken off."""
    rng = np.random.default_rng(0)
    alone = rng.multinomial(500, [0.25] * 4, (200, 1))
    shares = rng.dirichlet([20.0] * 4, 200)
    alike = np.stack([rng.multinomial(500, share) for share in shares])[:, None]
    for blocks, least, most in ((alone, 1.0, 1.3), (alike, 4.0, 60.0)):
        total = blocks.sum(axis=0)
        on, variance = bets(total)
        found = effects(gains(on, blocks), blocks.sum(axis=2), variance)
        assert least <= np.median(found) <= most


def test_a_change_is_seen_and_what_stays_is_not() -> None:
    rng = np.random.default_rng(1)
    reference, weight = np.array([10_000] * 10), weights(10)
    on, _ = bets(reference[None])
    quiet = gathered(gains(on, rng.multinomial(20, [0.1] * 10, (500, 1))), weight)[0]
    moved = gathered(gains(on, rng.multinomial(20, np.arange(1, 11) / 55, (20, 1))), weight)[0]
    assert quiet.max() < 8 < moved[9, 0]


def test_one_row_of_a_new_kind_is_not_enough() -> None:
    weight = weights(3)
    on, _ = bets(np.array([[60_000, 60_000, 0]]))
    one = gathered(gains(on, np.array([[[10, 9, 1]]])), weight)[0][0, 0]
    three = gathered(gains(on, np.array([[[10, 7, 3]]])), weight)[0][0, 0]
    assert one < 6.5 < 15 < three
