"""What changed about a feature, in words: from the profiles of reference and window, which know no single row. Pure."""

from __future__ import annotations

import numpy as np

from mlops_ray.data.profile import MAX_UNSEEN, Profile

# Below these a change is not worth a word: a fifth of a standard deviation is a small effect (Cohen 1988), and a point
# of the rows is what is read off a heat map.
_SMALL_EFFECT = 0.2
_SMALL_SHARE = 0.01


def cause(feature: str, reference: Profile, window: Profile) -> tuple[str, ...]:
    """What is new about this feature in the window: new or rare categories, missing values, mean and spread.

    Nothing when none of these stands out.
    """
    if not window.n or not reference.n or feature not in window.counts:
        return ()
    found = [_missing(feature, reference, window)]
    if feature in window.moments:
        found += [_mean(feature, reference, window), _spread(feature, reference, window)]
    else:
        found.insert(0, _new(feature, reference, window))
    return tuple(said for said in found if said)


def _new(feature: str, reference: Profile, window: Profile) -> str:
    known, seen = reference.unseen.get(feature, ()), window.unseen.get(feature, ())
    # A full sample holds the smallest hashes: below the largest of them, what it lacks was not there.
    until = known[-1].hash if len(known) == MAX_UNSEEN else None
    hashes = {u.hash for u in known}
    new = [u for u in seen if u.hash not in hashes and (until is None or u.hash < until)]
    if new:
        least = "at least " if until is not None or len(seen) == MAX_UNSEEN else ""
        what = f"category, {new[0].text!r}" if len(new) == 1 else "categories"
        return f"{least}{len(new)} new {what}, {percent(sum(u.n for u in new) / window.n)} of rows"
    before, now = (float(p.counts[feature][-2] / p.n) for p in (reference, window))
    if abs(now - before) < _SMALL_SHARE:
        return ""
    return f"rare categories from {percent(before)} to {percent(now)} of rows"


def _missing(feature: str, reference: Profile, window: Profile) -> str:
    before, now = (p.missing(feature) / p.n for p in (reference, window))
    return f"missing from {percent(before)} to {percent(now)}" if abs(now - before) >= _SMALL_SHARE else ""


def _mean(feature: str, reference: Profile, window: Profile) -> str:
    before, now = reference.moments[feature], window.moments[feature]
    moved = before.n and now.n and abs(now.mean - before.mean) > _SMALL_EFFECT * before.std
    return f"mean from {before.mean:.3g} to {now.mean:.3g}" if moved else ""


def _spread(feature: str, reference: Profile, window: Profile) -> str:
    before, now = reference.moments[feature], window.moments[feature]
    moved = before.n and now.n and abs(now.std - before.std) > _SMALL_EFFECT * before.std
    return f"standard deviation from {before.std:.3g} to {now.std:.3g}" if moved else ""


def percent(share: float) -> str:
    """A share for people: 0.2 %, 4.1 %, 23 %.

    >>> percent(0.041), percent(0.231), percent(0.0)
    ('4.1 %', '23 %', '0 %')
    """
    return f"{np.format_float_positional(100 * share, precision=2, fractional=False, trim='-')} %"
