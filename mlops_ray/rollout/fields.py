"""Lines of a CSV file that have more or fewer fields than its header names: what cut files and stray commas leave.

Readers of tables fill the one up and cut the other off, and say nothing. Source: RFC 4180, 2.4 (each line has the same
number of fields) and 2.6 (quoted fields may hold commas and line breaks).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

_SHOWN = 12  # columns that a message names


def ragged(path: Path) -> tuple[str, ...]:
    """What is wrong with the lines of a CSV file, in words: at most one sentence about those that are too short, and
    one about those that are too long, each with its first line, counted from 1, and how many there are.

    Raises: OSError; ValueError for quotes that no reader understands."""
    first: dict[bool, tuple[int, int]] = {}
    counts: Counter[bool] = Counter()
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            records = _records(file)
            names = next((fields for _, _, fields in records if fields), [])
            for line, n, _ in records:
                if n != len(names):
                    first.setdefault(n < len(names), (line, n))
                    counts[n < len(names)] += 1
    except csv.Error as exc:
        raise ValueError(f"its quotes cannot be read ({exc})") from exc
    return tuple(
        f"line {line:,}: {_said(n, names)}{f' ({counts[short]:,} such lines)' if counts[short] > 1 else ''}"
        for short, (line, n) in sorted(first.items(), key=lambda found: found[1])
    )


def _records(file: TextIO) -> Iterator[tuple[int, int, Sequence[str]]]:
    """Of each record its first line, how many fields it has, and those of it that were looked at: all of the first
    ones, until there was any. A record without a quote is a line, whose commas are soon counted."""
    line, known = 1, False
    for text in file:
        if known and '"' not in text:
            yield line, text.count(",") + 1 if text.strip("\r\n") else 0, ()
            line += 1
            continue
        reader = csv.reader(chain([text], file))
        fields = next(reader, [])
        yield line, len(fields), fields
        line, known = line + reader.line_num, known or bool(fields)


def _said(n: int, names: Sequence[str]) -> str:
    columns, fields = f"{len(names)} columns", "1 field" if n == 1 else f"{n or 'no'} fields"
    if n < len(names):
        return f"{fields} for {columns}; nothing stands for {_listed(names[n:])}"
    return f"{fields} for {columns} ({_listed(names)}); put a value that holds a comma in double quotes"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
