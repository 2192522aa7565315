"""The language of row rules and derived columns: text like `sched_arr_min != sched_dep_min or distance > 0`, typed.

Python's own grammar is read by `ast` and nothing of it is ever run: names of columns, numbers, texts, True and False,
comparisons (chained ones too), `in`, `is None`, `and or not`, `+ - * / // % **` and the functions of `FUNCTIONS`.
Everything else is refused with its position. `data/row_expressions.py` evaluates what `parse` returns.

Numbers are float64 throughout, whole ones too (exact up to 2**53); true and false count as 1 and 0 in arithmetic. Null
spreads through everything but `isnull`, `notnull`, `coalesce`, `is None` and the three-valued `and`, `or` of SQL. What
has no finite result (a division by zero, the logarithm of -1) is null. A difference of two times is in seconds; a text
that is compared with a time must be an ISO 8601 instant (UTC when it has no offset).
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal as OneOf

Kind = OneOf["number", "bool", "string", "timestamp"]
"""What a value is, whatever the dtype that stores it."""
LONGEST = 2000
"""Characters of an expression: more is a program, and a risk for the parser's stack."""
DEEPEST = 100
"""Levels of an expression: a sum of a hundred terms, and far from the end of any process's stack."""

KINDS: dict[str, Kind] = {
    "float": "number",
    "int": "number",
    "string": "string",
    "bool": "bool",
    "timestamp": "timestamp",
}
"""Kind of each `dtype` of the project file."""

FUNCTIONS: dict[str, tuple[tuple[Kind, ...], Kind]] = {
    **dict.fromkeys(("abs", "ceil", "cos", "exp", "floor", "log", "log10", "log1p"), (("number",), "number")),
    **dict.fromkeys(("round", "sign", "sin", "sqrt"), (("number",), "number")),
    "len": (("string",), "number"),
    "lower": (("string",), "string"),
    "upper": (("string",), "string"),
    "strip": (("string",), "string"),
    **dict.fromkeys(("contains", "endswith", "matches", "startswith"), (("string", "string"), "bool")),
    **dict.fromkeys(("year", "month", "day", "hour", "minute", "second"), (("timestamp",), "number")),
    **dict.fromkeys(("weekday", "dayofyear", "epoch"), (("timestamp",), "number")),
}
"""Kinds of the arguments and of the result. Beside these: isnull, notnull, coalesce, min, max, where, and col('a name')
for columns whose names are no words."""
_ANY = ("coalesce", "col", "isnull", "max", "min", "notnull", "where")

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


@dataclass(frozen=True)
class Constant:
    """A number, a text, a truth value; a time as microseconds since the epoch."""

    value: float | str | bool | int
    kind: Kind


@dataclass(frozen=True)
class Name:
    """A column of the row."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Call:
    """An operator or function over its arguments."""

    op: str
    args: tuple[Node, ...]
    kind: Kind


Node = Constant | Name | Call


@dataclass(frozen=True)
class Expression:
    """A parsed and typed expression; `names` are the columns that it reads, each once, in order of appearance."""

    text: str
    tree: Node
    names: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """Of the result: "number" (float64), "bool", "string" or "timestamp"."""
        return self.tree.kind


def parse(text: str, names: Mapping[str, str]) -> Expression:
    """The expression that `text` says.

    Args: names: dtype (of the project file: float, int, string, bool, timestamp) of each column that it may read.
    Raises: ValueError with the position (in characters, from 1) and the way out.

    >>> parse("distance > 0 or carrier in ('UA', 'DL')", {"distance": "float", "carrier": "string"}).names
    ('distance', 'carrier')
    >>> parse("distanc > 0", {"distance": "float"})
    Traceback (most recent call last):
        ...
    ValueError: distanc at position 1 is not one of the columns; did you mean 'distance'?
    """
    if len(text) > LONGEST:
        raise ValueError(f"the expression has {len(text)} characters, {LONGEST} are allowed; split it in two")
    if "\0" in text:  # Python's own parser has no position for it
        raise ValueError(f"not an expression: a null character at position {text.index(chr(0)) + 1}; remove it")
    line = re.sub(r"[\r\n\t]", " ", text)
    indent = len(line) - len(line.lstrip())
    try:
        with warnings.catch_warnings():
            # Python warns of '\d' in a text; a pattern of `matches` means just that.
            warnings.simplefilter("ignore")
            body = ast.parse(line.strip(), mode="eval").body
        if _depth(body) > DEEPEST:
            raise ValueError(f"the expression is nested more than {DEEPEST} levels deep; split it in two")
        tree = _Reader(line.strip(), indent, names).node(body)
    except SyntaxError as exc:
        at = (exc.offset or 1) + indent
        raise ValueError(f"not an expression: {exc.msg} at position {at}; quotes and brackets must match") from exc
    except (RecursionError, MemoryError) as exc:
        raise ValueError("the expression is nested too deeply; split it in two") from exc
    return Expression(text, tree, tuple(dict.fromkeys(_names(tree))))


def _depth(body: ast.expr) -> int:
    depth, level = 0, [body]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return depth


def _names(node: Node) -> Iterator[str]:
    if isinstance(node, Name):
        yield node.name
    elif isinstance(node, Call):
        for arg in node.args:
            yield from _names(arg)


@dataclass(frozen=True)
class _Reader:
    """Python's tree into ours."""

    line: str
    indent: int
    columns: Mapping[str, str]

    def _wrong(self, node: ast.expr, what: str) -> ValueError:
        # `ast` counts bytes of UTF-8.
        at = len(self.line.encode()[: node.col_offset].decode(errors="ignore")) + 1 + self.indent
        shown = ast.unparse(node)
        return ValueError(f"{shown if len(shown) <= 40 else shown[:37] + '...'} at position {at} {what}")

    def node(self, node: ast.expr) -> Node:
        """Our node for Python's. Raises: ValueError."""
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._name(node, node.id)
        if isinstance(node, ast.BoolOp):
            op = "and" if isinstance(node.op, ast.And) else "or"
            return Call(op, tuple(self.truth(value) for value in node.values), "bool")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Call("not", (self.truth(node.operand),), "bool")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = self.number(node.operand)
            if isinstance(node.op, ast.UAdd):
                return inner
            if isinstance(inner, Constant):
                return Constant(-float(inner.value), "number")
            return Call("negate", (inner,), "number")
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return self._arithmetic(node)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        hints = {"IfExp": "; write where(condition, a, b)", "BinOp": "; write and, or, not"}
        raise self._wrong(node, "is not part of the language" + hints.get(type(node).__name__, ""))

    def truth(self, node: ast.expr) -> Node:
        """A node that must be true or false."""
        found = self.node(node)
        if found.kind != "bool":
            raise self._wrong(node, f"is a {found.kind}; a condition belongs here, such as a comparison")
        return found

    def number(self, node: ast.expr) -> Node:
        """A node that must be a number, or a truth value as 0 and 1."""
        return self._as_number(node, self.node(node))

    def _as_number(self, node: ast.expr, found: Node) -> Node:
        if found.kind == "bool":
            return Call("number", (found,), "number")
        if found.kind != "number":
            raise self._wrong(node, f"is a {found.kind}; a number belongs here")
        return found

    def _constant(self, node: ast.Constant) -> Constant:
        value = node.value
        if isinstance(value, bool):
            return Constant(value, "bool")
        if isinstance(value, str):
            return Constant(value, "string")
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return Constant(number, "number")
            raise self._wrong(node, "is more than a float64 holds")
        hint = "; write isnull(column)" if value is None else ""
        raise self._wrong(node, "is not part of the language" + hint)

    def _name(self, node: ast.expr, name: str) -> Name:
        if name not in self.columns:
            near = difflib.get_close_matches(name, list(self.columns), 1)
            hint = f"did you mean {near[0]!r}?" if near else "put texts in quotes, and add columns to `columns:`"
            raise self._wrong(node, f"is not one of the columns; {hint}")
        # A dtype that does not exist is somebody else's complaint.
        return Name(name, KINDS.get(self.columns[name], "number"))

    def _arithmetic(self, node: ast.BinOp) -> Call:
        op, sides = _ARITHMETIC[type(node.op)], (node.left, node.right)
        found = [self.node(side) for side in sides]
        if op == "-" and "timestamp" in (found[0].kind, found[1].kind):
            return Call("seconds between", self._alike(sides, found), "number")
        return Call(op, tuple(self._as_number(*pair) for pair in zip(sides, found, strict=True)), "number")

    def _same_kind(self, *nodes: ast.expr) -> tuple[Node, ...]:
        """Nodes of one kind: truth values become numbers beside numbers, texts become times beside times."""
        return self._alike(nodes, [self.node(node) for node in nodes])

    def _alike(self, nodes: Sequence[ast.expr], found: Sequence[Node]) -> tuple[Node, ...]:
        kinds = {each.kind for each in found}
        if kinds == {"bool", "number"}:
            return tuple(self._as_number(node, each) for node, each in zip(nodes, found, strict=True))
        if kinds == {"string", "timestamp"}:
            return tuple(self._time(node, each) for node, each in zip(nodes, found, strict=True))
        if len(kinds) > 1:
            odd = next(i for i, each in enumerate(found) if each.kind != found[0].kind)
            raise self._wrong(nodes[odd], f"is a {found[odd].kind}, {ast.unparse(nodes[0])} is a {found[0].kind}")
        return tuple(found)

    def _time(self, node: ast.expr, found: Node) -> Node:
        if found.kind == "timestamp":
            return found
        if not isinstance(found, Constant):
            raise self._wrong(node, "is a string; a time belongs here")
        try:
            instant = datetime.fromisoformat(str(found.value))
        except ValueError:
            raise self._wrong(node, "is no time; write it like '2013-01-31T08:00:00Z'") from None
        instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return Constant((instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), "timestamp")

    def _compare(self, node: ast.Compare) -> Node:
        sides = [node.left, *node.comparators]
        pairs = [self._pair(sides[i], op, sides[i + 1]) for i, op in enumerate(node.ops)]
        return pairs[0] if len(pairs) == 1 else Call("and", tuple(pairs), "bool")

    def _pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Node:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._wrong(right, "cannot stand after `is`, only None can; write == to compare")
            return Call("isnull" if isinstance(op, ast.Is) else "notnull", (self.node(left),), "bool")
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                raise self._wrong(right, "should be a list of values such as ('a', 'b'); to look into text: contains()")
            args = self._same_kind(left, *right.elts)
            for written, arg in zip(right.elts, args[1:], strict=True):
                if not isinstance(arg, Constant):
                    raise self._wrong(written, "should be a plain value; a list after `in` holds no columns")
            inside = Call("in", args, "bool")
            return inside if isinstance(op, ast.In) else Call("not", (inside,), "bool")
        return Call(_COMPARISONS[type(op)], self._same_kind(left, right), "bool")

    def _call(self, node: ast.Call) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS and name not in _ANY:
            near = difflib.get_close_matches(name, [*FUNCTIONS, *_ANY], 1)
            hint = f"did you mean {near[0]}()?" if near else "there are " + ", ".join(sorted([*FUNCTIONS, *_ANY]))
            raise self._wrong(node.func, f"is not a function of the language; {hint}")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self._wrong(node, "takes its arguments one by one, without names or stars")
        if name in FUNCTIONS:
            return self._function(node, name, node.args)
        least, most = {"isnull": (1, 1), "notnull": (1, 1), "where": (3, 3), "col": (1, 1)}.get(name, (2, 100))
        if not least <= len(node.args) <= most:
            raise self._wrong(
                node, f"takes {least if least == most else f'at least {least}'} argument{'s' * (most > 1)}"
            )
        if name == "col":
            named = node.args[0]
            if not (isinstance(named, ast.Constant) and isinstance(named.value, str)):
                raise self._wrong(named, "should be a column's name in quotes")
            return self._name(node, named.value)
        if name in ("isnull", "notnull"):
            return Call(name, (self.node(node.args[0]),), "bool")
        if name in ("min", "max"):
            return Call(name, tuple(self.number(arg) for arg in node.args), "number")
        if name == "where":
            args = (self.truth(node.args[0]), *self._same_kind(*node.args[1:]))
            return Call(name, args, args[1].kind)
        args = self._same_kind(*node.args)
        return Call(name, args, args[0].kind)

    def _function(self, node: ast.Call, name: str, written: Sequence[ast.expr]) -> Call:
        kinds, result = FUNCTIONS[name]
        if len(written) != len(kinds):
            raise self._wrong(node, f"takes {len(kinds)} argument{'s' * (len(kinds) > 1)}")
        args = []
        for i, (arg, kind) in enumerate(zip(written, kinds, strict=True)):
            found = self.number(arg) if kind == "number" else self.node(arg)
            if found.kind != kind:
                raise self._wrong(arg, f"is a {found.kind}; {name}() takes a {kind}")
            if i == 1 and not isinstance(found, Constant):
                raise self._wrong(arg, f"should be a text in quotes: the second argument of {name}() is fixed")
            args.append(found)
        if name == "matches" and isinstance(args[1], Constant):
            try:
                re.compile(str(args[1].value))
            except re.error as exc:
                raise self._wrong(written[1], f"is not a regular expression: {exc}") from exc
        return Call(name, tuple(args), result)
