from __future__ import annotations

import math
from datetime import UTC, datetime

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.config.expressions import FUNCTIONS, LONGEST, parse
from mlops_ray.data.rules.row_expressions import ARROW, evaluate

DTYPES = {"x": "float", "y": "float", "i": "int", "s": "string", "b": "bool", "t": "timestamp", "u": "timestamp"}
TIMES = [
    datetime(2013, 1, 1, 5, 30, tzinfo=UTC),
    None,
    datetime(2020, 2, 3, tzinfo=UTC),
    datetime(2013, 1, 2, tzinfo=UTC),
]
TABLE = pa.table(
    {
        "x": pa.array([1.0, None, float("nan"), -3.0]),
        "y": pa.array([0.0, 2.0, 1.0, 2.0]),
        "i": pa.array([1, 2, 3, None], pa.int32()),
        "s": pa.array(["ab", "É", None, " x"]).dictionary_encode(),
        "b": pa.array([True, None, False, True]),
        "t": pa.array(TIMES, pa.timestamp("ms", tz="America/New_York")),
        "u": pa.array([datetime(2013, 1, 1)] * 4, pa.timestamp("us")),
    }
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x + y", [1.0, None, None, -1.0]),
        ("x / y", [None, None, None, -1.5]),
        ("-3 % y", [None, 1.0, 0.0, 1.0]),
        ("7 // 2 - 2 ** 3 + +x", [-4.0, None, None, -8.0]),
        ("b * 2 + (b == 1)", [3.0, None, 0.0, 3.0]),
        ("x > 0 or y > 1", [True, True, None, True]),
        ("x > 0 and y > 1", [False, None, False, False]),
        ("not x > 0", [False, None, None, True]),
        ("-5 <= x < i", [False, None, None, None]),
        ("x is None", [False, True, True, False]),
        ("i is not None", [True, True, True, False]),
        ("isnull(x) or notnull(i)", [True, True, True, False]),
        ("coalesce(x, i, 0)", [1.0, 2.0, 3.0, -3.0]),
        ("min(x, y, i)", [0.0, None, None, None]),
        ("max(y, 1.5)", [1.5, 2.0, 1.5, 2.0]),
        ("where(b, x, -1)", [1.0, None, -1.0, -3.0]),
        ("i in (1, 3)", [True, False, True, None]),
        ("s not in ['ab']", [False, True, None, True]),
        ("len(s)", [2.0, 1.0, None, 2.0]),
        ("lower(strip(s))", ["ab", "é", None, "x"]),
        ("upper(s) == 'AB'", [True, False, None, False]),
        ("startswith(s, 'a') or endswith(s, 'x')", [True, False, None, True]),
        ("contains(s, '.')", [False, False, None, False]),
        (r"matches(s, '\w+')", [True, True, None, False]),
        ("sqrt(x)", [1.0, None, None, None]),
        ("log(y)", [None, math.log(2), 0.0, math.log(2)]),
        ("exp(1000 * x)", [None, None, None, 0.0]),
        ("floor(x / 2) + ceil(x / 2) + round(x / 2) + abs(x) + sign(x)", [3.0, None, None, -3.0]),
        ("t - u", [19800.0, None, 223689600.0, 86400.0]),
        ("epoch(u)", [1356998400.0] * 4),
        ("hour(t) + minute(t) / 60", [5.5, None, 0.0, 0.0]),
        ("weekday(t)", [1.0, None, 0.0, 2.0]),
        ("year(t) * 1000 + dayofyear(t)", [2013001.0, None, 2020034.0, 2013002.0]),
        ("t > '2013-01-01T06:00:00+01:00'", [True, None, True, True]),
        ("t in ('2013-01-02', '2020-02-03T00:00Z')", [False, None, True, True]),
        ("1 / 0", [None] * 4),
        ("'a' == 'a'", [True] * 4),
        ("col('x') > 0", [True, None, None, False]),
    ],
)
def test_values_in_a_batch_and_row_by_row(text, wanted):
    expression = parse(text, DTYPES)
    found = evaluate(expression, TABLE)
    assert found.type == ARROW[expression.kind]
    assert found.to_pylist() == wanted
    alone = [evaluate(expression, TABLE.slice(i, 1)).to_pylist() for i in range(4)]
    assert alone == [[value] for value in wanted]
    assert len(evaluate(expression, TABLE.slice(0, 0))) == 0
    assert set(expression.names) <= set(DTYPES)


@settings(max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.sampled_from(sorted(FUNCTIONS)))
def test_a_row_alone_is_the_row_in_its_batch_bit_by_bit(values, name):
    kinds, _ = FUNCTIONS[name]
    inside = {"number": "x", "string": "s", "timestamp": "t"}[kinds[0]]
    text = f"{name}({inside}{', ' + repr('1') if len(kinds) > 1 else ''})"
    expression = parse(text if kinds[0] != "number" else f"{text} ** 0.5 + {text} / 7", DTYPES)
    whole = pa.table(
        {
            "x": values,
            "s": [str(v) for v in values],
            "t": pa.array([int(v * 1e9) for v in values], pa.timestamp("us", "UTC")),
        }
    )
    batch = evaluate(expression, whole).to_pylist()
    alone = [evaluate(expression, whole.slice(i, 1)).to_pylist()[0] for i in range(len(values))]
    assert repr(batch) == repr(alone)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("xx > 0", "xx at position 1 is not one of the columns; did you mean 'x'?"),
        ("x >\n  zzzz", "zzzz at position 7 is not one of the columns; put texts in quotes"),
        ("'é' == s and q == 1", "q at position 14"),
        ("x > ", "not an expression"),
        ("x > 's'", "'s' at position 5 is a string, x is a number"),
        ("t > 'soon'", "'soon' at position 5 is no time; write it like"),
        ("t > s", "s at position 5 is a string; a time belongs here"),
        ("x and b", "x at position 1 is a number; a condition belongs here"),
        ("s + 1", "s at position 1 is a string; a number belongs here"),
        ("len(x)", "x at position 5 is a number; len() takes a string"),
        ("contains(s, s)", "the second argument of contains() is fixed"),
        ("matches(s, '(')", "is not a regular expression"),
        ("lenn(s)", "did you mean len()?"),
        ("hour(t, t)", "takes 1 argument"),
        ("min(x)", "takes at least 2 arguments"),
        ("s in ('a', 1)", "1 at position 12 is a number, s is a string"),
        ("x in (y, 1)", "a list after `in` holds no columns"),
        ("s in 'abc'", "should be a list of values"),
        ("x == None", "write isnull(column)"),
        ("x is 3", "write == to compare"),
        ("x if b else y", "write where(condition, a, b)"),
        ("__import__('os').system('ls')", "is not a function of the language"),
        ("x.real", "is not part of the language"),
        ("[v for v in (1, 2)]", "is not part of the language"),
        ("lambda: 0", "is not part of the language"),
        ("len(*s)", "one by one"),
        ("1e999 > x", "is more than a float64 holds"),
        ("9" * 400 + " > x", "is more than a float64 holds"),
        ("col('zz')", "is not one of the columns"),
        ("col(s)", "a column's name in quotes"),
        ("", "not an expression"),
        ("\0", "not an expression"),
        ("x" + " + x" * 300, "more than 100 levels deep"),
        ("(" * 900 + "x" + ")" * 900, "not an expression"),
        ("x" * (LONGEST + 1), "characters"),
    ],
)
def test_mistakes_are_named_with_their_place(text, says):
    with pytest.raises(ValueError) as caught:
        parse(text, DTYPES)
    assert says in str(caught.value)


def test_long_sums_take_no_longer_than_they_are():
    expression = parse("x" + " - x" * 90, DTYPES)
    assert evaluate(expression, TABLE).to_pylist() == [-89.0, None, None, 267.0]


def test_what_is_not_finite_is_null_in_large_columns_too():
    values = np.ones(10_000)
    values[77] = np.inf
    found = evaluate(parse("x * 1", {"x": "float"}), pa.table({"x": values}))
    assert found.null_count == 1
