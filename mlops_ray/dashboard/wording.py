"""Numbers, shares and times as the dashboard's sentences have them.

A time stands in a sentence as `{@1362096000}`: the page tells it in its reader's zone.
"""

from __future__ import annotations


def moment(at: float) -> str:
    """A time, seconds since the epoch, as it stands in a sentence.

    >>> moment(1362096000.4)
    '{@1362096000}'
    """
    return f"{{@{round(at)}}}"


def percent(share: float) -> str:
    """
    >>> percent(0.2), percent(0.005)
    ('20 %', '0.5 %')
    """
    return f"{100 * share:.3g} %"


def signed(value: float) -> str:
    """With a sign that is as wide as the other.

    >>> signed(-0.00412), signed(0.011)
    ('−0.0041', '+0.0110')
    """
    return f"{value:+.4f}".replace("-", "−")


def span(seconds: float) -> str:
    """
    >>> span(90), span(7200), span(604800)
    ('90 s', '2 h', '7 days')
    """
    for unit_s, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit_s or seconds == unit_s:
            count = seconds / unit_s
            return f"{count:.3g} {'day' if unit == 'days' and count == 1 else unit}"
    return f"{seconds:.3g} s"


def metric(name: str) -> str:
    """A metric's name for people.

    >>> metric("log_loss"), metric("mae"), metric("latency[carrier=AA]")
    ('log-loss', 'mean absolute error', 'latency[carrier=AA]')
    """
    known = {"log_loss": "log-loss", "mae": "mean absolute error", "roc_auc": "ROC AUC", "brier": "Brier score"}
    known |= {"absolute_error": "absolute error"}
    head, bracket, rest = name.partition("[")
    return known.get(head, head) + bracket + rest
