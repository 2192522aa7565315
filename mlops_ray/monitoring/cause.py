"""What changed about a feature, in words: from the profiles of reference and window, which know no single row. Pure."""

from __future__ import annotations

import numpy as np

from mlops_ray.data.profile import MAX_UNSEEN, Profile

# Below these a change is not worth a word: a fifth of a standard deviation is a small effect (Cohen 1988), and a point
# of the rows is what is read off a heat map.
_SMALL_EFFECT = 0.2
_SMALL_SHARE = 0.01


def cause(feature: str, reference: Profile, window: Profile) -> tuple[str, ...]:
    """What is new about this feature in the window, the most telling first; nothing when no one thing stands out.

    New categories, missing values, the mean, the spread, and the category or bin whose share moved most.
    """
    if not window.n or not reference.n:
        return ()
    found = [_missing(feature, reference, window)]
    if feature in window.moments:
        found += [_mean(feature, reference, window), _spread(feature, reference, window)]
    else:
        found.insert(0, _new(feature, reference, window))
    return tuple(said for said in found if said)


def _new(feature: str, reference: Profile, window: Profile) -> str:
    known = {u.hash for u in reference.unseen.get(feature, ())}
    complete = len(known) < MAX_UNSEEN
    new = [u for u in window.unseen.get(feature, ()) if u.hash not in known] if complete else []
    if new:
        rows = sum(u.n for u in new)
        # A full sample says of how many at least.
        least = "at least " if len(window.unseen[feature]) == MAX_UNSEEN else ""
        what = "category" if len(new) == 1 else "categories"
        most = max(new, key=lambda u: (u.n, u.text)).text
        return f"{least}{len(new)} new {what} ({most!r}{', …' if len(new) > 1 else ''}), {_percent(rows / window.n)} of rows"
    before, now = (float(p.counts[feature][-2] / p.n) for p in (reference, window))
    if abs(now - before) < _SMALL_SHARE:
        return ""
    return f"rare categories from {_percent(before)} to {_percent(now)} of rows"


def _missing(feature: str, reference: Profile, window: Profile) -> str:
    before, now = (p.missing(feature) / p.n for p in (reference, window))
    return f"missing from {_percent(before)} to {_percent(now)}" if abs(now - before) >= _SMALL_SHARE else ""


def _mean(feature: str, reference: Profile, window: Profile) -> str:
    before, now = reference.moments[feature], window.moments[feature]
    if not before.n or not now.n or abs(now.mean - before.mean) <= _SMALL_EFFECT * before.std:
        return ""
    return f"mean from {before.mean:.3g} to {now.mean:.3g}"


def _spread(feature: str, reference: Profile, window: Profile) -> str:
    before, now = reference.moments[feature].std, window.moments[feature].std
    if not reference.moments[feature].n or not window.moments[feature].n:
        return ""
    if abs(now - before) <= _SMALL_EFFECT * before:
        return ""
    return f"standard deviation from {before:.3g} to {now:.3g}"


def _percent(share: float) -> str:
    """A share for people: 0.2 %, 4.1 %, 23 %.

    >>> _percent(0.041), _percent(0.231), _percent(0.0)
    ('4.1 %', '23 %', '0 %')
    """
    return f"{np.format_float_positional(100 * share, precision=2, fractional=False, trim='-')} %"
