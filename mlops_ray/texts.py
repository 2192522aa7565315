"""What people write for the record, and how stored text is shown: a screen must not obey it."""

from __future__ import annotations

import re
from typing import TypeVar

from mlops_ray.errors import OrderRefused

MOST_REASON = 1000
"""Characters of a reason."""
CONTROLS = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
"""What no line of text needs and terminals obey, as the inside of a character class, here and in JSON Schema: C0, DEL
and C1 (with ESC, CSI, OSC and BEL), separators of lines, and marks that turn the direction of writing (Unicode Standard
Annex 9; they let a text read otherwise than it is: CVE-2021-42574)."""

_CONTROL = re.compile(f"[{CONTROLS}\ud800-\udfff]")
_BUT_LINES = re.compile(rf"(?![\n\t])[{CONTROLS}\ud800-\udfff]")
T = TypeVar("T")


def harmless(value: T) -> T:
    """A text with its control characters escaped, line breaks too; of lists, tuples and dicts every text in them.

    >>> harmless({"why": "a" + chr(27) + "[2J", "n": 1})
    {'why': 'a\\\\x1b[2J', 'n': 1}
    """
    found: object = value
    if isinstance(value, str):
        found = _CONTROL.sub(_escaped, value)
    elif isinstance(value, dict):
        found = {harmless(name): harmless(one) for name, one in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(map(harmless, value))
    return found  # type: ignore[return-value]


def harmless_lines(text: str) -> str:
    """A text of several lines with its other control characters escaped."""
    return _BUT_LINES.sub(_escaped, text)


def is_reason(text: object) -> bool:
    """Whether this can stand in the ledger as what a person gives as the reason of an order."""
    return isinstance(text, str) and bool(text.strip()) and len(text) <= MOST_REASON and not _CONTROL.search(text)


def reason(text: str) -> str:
    """The reason that a person gives for an order, trimmed.

    Raises: OrderRefused unless it has 1 to `MOST_REASON` characters, none of them a control character."""
    if is_reason(text):
        return text.strip()
    found = _CONTROL.search(text)
    if not text.strip():
        says = "is empty"
    elif found is not None and len(text) <= MOST_REASON:
        says = f"holds the control character {_escaped(found)}"
    else:
        says = f"has {len(text):,} characters"
    raise OrderRefused("the reason", f"it {says}; write a sentence of 1 to {MOST_REASON:,} characters, in one line")


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
