"""The `features:` block: the model's inputs and what is done to them.

Three sets of columns follow from it. *Inputs* are columns of the data: what a request carries and the log keeps.
*Derived* columns are computed from the inputs row by row (date parts, hashed texts, expressions). The *model's columns*
are what the fitted scikit-learn transformer takes: numbers first, then categories, derived ones among them.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from mlops_ray.config.base import Config, ImportPath, Zone
from mlops_ray.config.expressions import Expression, parse

Kind = Literal["number", "string", "time"]
Part = Literal["year", "month", "day", "weekday", "hour", "minute", "dayofyear", "is_weekend"]
Cycle = Literal["month", "day", "weekday", "hour", "minute", "dayofyear"]
Quantile = Annotated[float, Field(ge=0, le=1)]
B = TypeVar("B")


def _shape(value: object) -> str:
    return "a list" if isinstance(value, list | tuple) else "one block"


OneOrMore = Annotated[
    Annotated[B, Tag("one block")] | Annotated[tuple[B, ...], Tag("a list")],
    Discriminator(_shape),
]
"""A block, or a list of such blocks. Told apart by shape, so that a mistake is complained of once."""


class Quantiles(Config):
    """Limits at two quantiles of the training rows."""

    quantiles: tuple[Quantile, Quantile]

    @model_validator(mode="after")
    def _rising(self) -> Quantiles:
        if not self.quantiles[0] < self.quantiles[1]:
            raise ValueError("quantiles must rise, such as [0.01, 0.99]")
        return self


class Binning(Config):
    """Numbers into bins, as scikit-learn's KBinsDiscretizer cuts them."""

    n: Annotated[int, Field(ge=2, le=1000)] = 5
    strategy: Literal["quantile", "uniform"] = "quantile"
    encode: Literal["onehot", "ordinal"] = "onehot"


class Numeric(Config):
    """Numeric features: clipped, then the logarithm taken, imputed, and last scaled or binned."""

    columns: tuple[str, ...] = ()
    """Columns of the data, or derived ones."""
    clip: (
        Annotated[
            Annotated[Quantiles, Tag("one block")] | Annotated[tuple[float, float], Tag("a list")],
            Discriminator(_shape),
        ]
        | None
    ) = None
    """Limits `[low, high]`, or `{quantiles: [0.01, 0.99]}`: the values at those shares of the training rows."""
    log: bool = False
    """log(1 + x), for values of at least 0."""
    impute: Literal["mean", "median", "most_frequent", "constant", "none"] = "mean"
    fill_value: float = 0.0
    """For `impute: constant`, in the column's own unit."""
    indicator: bool = False
    """Adds a column per feature that is 1 where its value is missing."""
    scale: Literal["standard", "robust", "min_max", "quantile", "power", "none"] | None = None
    """`standard` unless there are bins."""
    output: Literal["uniform", "normal"] = "uniform"
    """What `scale: quantile` maps to."""
    bins: Binning | None = None
    """Instead of scaling."""

    @model_validator(mode="after")
    def _fits_together(self) -> Numeric:
        wrong = []
        if isinstance(self.clip, tuple) and not self.clip[0] < self.clip[1]:
            wrong.append(f"clip: {list(self.clip)} must rise; swap them")
        if self.log and isinstance(self.clip, tuple) and self.clip[0] < 0:
            wrong.append("log: true takes values of at least 0; clip there")
        if self.log and self.impute == "constant" and self.fill_value < 0:
            wrong.append("log: true takes values of at least 0; change fill_value")
        if self.bins is not None and self.impute == "none":
            wrong.append("bins: have no place for a missing value; impute it")
        if self.bins is not None and self.scale not in (None, "none"):
            wrong.append("bins: stand instead of a scale; remove one")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def scaling(self) -> str:
        """What happens last: a scale, or "none" where there are bins."""
        return "none" if self.bins is not None else self.scale or "standard"


class Categorical(Config):
    """Categorical features. Categories that are too rare count as unknown, as unseen ones do."""

    columns: tuple[str, ...] = ()
    encode: Literal["one_hot", "ordinal", "target", "hash"] = "one_hot"
    min_share: Annotated[float, Field(ge=0, lt=1)] = 0.001
    min_frequency: PositiveInt = 1
    """Rows that a category needs."""
    max_categories: PositiveInt | None = None
    """At most so many, the most frequent ones."""
    smooth: Literal["auto"] | NonNegativeFloat = "auto"
    """Of `encode: target`: how strongly small categories lean to the mean of all rows."""
    n_buckets: Annotated[int, Field(ge=2, le=4096)] = 32
    """Of `encode: hash`."""
    signed: bool = True
    """Of `encode: hash`: half of the values count -1, so that collisions cancel on average."""


class Datetime(Config):
    """Numbers out of times: columns `<column>_<part>`, for cyclic ones `<column>_<part>_sin` and `_cos`."""

    columns: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    cyclic: tuple[Cycle, ...] = ()
    zone: Zone = "UTC"
    """Where the clock hangs that the parts are read from, such as America/New_York."""
    elapsed_since: str | None = None
    """An instant (ISO 8601), or another column of times: days passed since then, `<column>_elapsed_days`."""

    @property
    def since_s(self) -> float | None:
        """The instant of `elapsed_since`, seconds since the epoch; None when it names a column."""
        try:
            instant = datetime.fromisoformat(self.elapsed_since or "")
        except ValueError:
            return None
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()

    def names(self, column: str) -> tuple[str, ...]:
        """The columns that `column` becomes."""
        waves = [f"{part}_{wave}" for part in self.cyclic for wave in ("sin", "cos")]
        elapsed = ["elapsed_days"] if self.elapsed_since is not None else []
        return tuple(f"{column}_{name}" for name in (*self.parts, *waves, *elapsed))


class Text(Config):
    """Texts as counts of hashed pieces, as scikit-learn's HashingVectorizer counts them (without norm)."""

    columns: tuple[str, ...] = ()
    n_buckets: Annotated[int, Field(ge=2, le=4096)] = 64
    tokens: Literal["words", "chars"] = "words"
    ngrams: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Shortest and longest run of words or characters that counts as a piece."""
    signed: bool = True

    @model_validator(mode="after")
    def _rising(self) -> Text:
        if self.ngrams[0] > self.ngrams[1]:
            raise ValueError(f"ngrams: {list(self.ngrams)} must rise; swap them")
        return self


class Custom(Config):
    """A scikit-learn transformer of your own, fitted on the rows of its columns and saved with the version.

    Its types, except scikit-learn's own, must stand in `features.trusted_types`, and serving must be able to import it.
    """

    transformer: ImportPath
    params: dict[str, Any] = Field(default_factory=dict)
    columns: tuple[str, ...] = Field(min_length=1)
    kind: Literal["numeric", "categorical"] = "numeric"
    """Numbers come as float64 with NaN for missing, strings as objects with "" for missing."""


IMPLICIT = Numeric(impute="mean", scale="standard")
"""What happens to date parts and expressions that no numeric block names."""
PLAIN = Numeric(impute="none", scale="none")
"""What happens to hashed columns that no numeric block names: they are counts, and never missing."""
_CACHED = ("kinds", "inputs", "derived", "numeric_parts", "numbers", "texts", "columns", "parsed")


class Features(Config):
    """The model's inputs. Whatever column of the data stands here is asked for in every request.

    Each block may be a list of blocks, with other columns and options."""

    numeric: OneOrMore[Numeric] = Numeric()
    categorical: OneOrMore[Categorical] = Categorical()
    datetime: OneOrMore[Datetime] = Datetime()
    text: OneOrMore[Text] = Text()
    expressions: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str] = Field(default_factory=dict)
    """Derived numbers: name to expression over columns of the data."""
    custom: OneOrMore[Custom] = ()
    trusted_types: tuple[str, ...] = ()
    """Types beyond scikit-learn's that this project's versions may hold: `module.Class`, as the refusal names them."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Features:
        """A copy, with other fields where `update` says so."""
        copied = super().model_copy(update=update, deep=deep)
        for name in _CACHED:
            copied.__dict__.pop(name, None)
        return copied

    @property
    def numeric_blocks(self) -> tuple[Numeric, ...]:
        """The numeric blocks, in the file's order."""
        return self.numeric if isinstance(self.numeric, tuple) else (self.numeric,)

    @property
    def categorical_blocks(self) -> tuple[Categorical, ...]:
        """The categorical blocks, in the file's order."""
        return self.categorical if isinstance(self.categorical, tuple) else (self.categorical,)

    @property
    def datetime_blocks(self) -> tuple[Datetime, ...]:
        """The blocks of times, in the file's order."""
        return self.datetime if isinstance(self.datetime, tuple) else (self.datetime,)

    @property
    def text_blocks(self) -> tuple[Text, ...]:
        """The blocks of texts, in the file's order."""
        return self.text if isinstance(self.text, tuple) else (self.text,)

    @property
    def custom_blocks(self) -> tuple[Custom, ...]:
        """The custom transformers, in the file's order."""
        return self.custom if isinstance(self.custom, tuple) else (self.custom,)

    @cached_property
    def derived(self) -> tuple[str, ...]:
        """Numbers computed from the inputs before the transformer; a version that has some needs this package."""
        dates = [name for block in self.datetime_blocks for column in block.columns for name in block.names(column)]
        return _once([*dates, *self.expressions, *self._hashed])

    @property
    def _hashed(self) -> list[str]:
        hashed = [block for block in self.categorical_blocks if block.encode == "hash"]
        blocks: list[Categorical | Text] = [*hashed, *self.text_blocks]
        return [name for block in blocks for column in block.columns for name in hashed_names(column, block.n_buckets)]

    @cached_property
    def numeric_parts(self) -> tuple[tuple[str, Numeric], ...]:
        """Named numeric blocks of the transformer, in order; derived columns that no block names come last."""
        blocks = [block for block in self.numeric_blocks if block.columns]
        named = [("numeric" if i == 0 else f"numeric_{i + 1}", block) for i, block in enumerate(blocks)]
        used = {name for _, block in named for name in block.columns}
        hashed = set(self._hashed)
        for label, block, wanted in (("derived", IMPLICIT, False), ("hashed", PLAIN, True)):
            rest = tuple(n for n in self.derived if n not in used and (n in hashed) is wanted)
            if rest:
                named.append((label, block.model_copy(update={"columns": rest})))
        return tuple(named)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The model's numeric columns, each once."""
        custom = [name for block in self.custom_blocks if block.kind == "numeric" for name in block.columns]
        return _once([*(name for _, block in self.numeric_parts for name in block.columns), *custom])

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The model's categorical columns, each once."""
        custom = [name for block in self.custom_blocks if block.kind == "categorical" for name in block.columns]
        return _once([*self.counted, *custom])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What the transformer takes: numbers, then categories, in the file's order."""
        return self.numbers + self.texts

    @property
    def counted(self) -> tuple[str, ...]:
        """Categorical inputs whose categories are counted: all but the hashed ones."""
        return _once(name for b in self.categorical_blocks if b.encode != "hash" for name in b.columns)

    @property
    def target_encoded(self) -> tuple[str, ...]:
        """Categorical inputs whose encoding looks at the target."""
        return _once(name for b in self.categorical_blocks if b.encode == "target" for name in b.columns)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What each input is: numbers, then categories and texts, then times.

        A column that only an expression reads is what the expression makes of it, a number where it leaves that open.
        Raises: ValueError for an expression that is none."""
        derived = set(self.derived)
        numbers = [name for name in self.numbers if name not in derived]
        strings = [name for name, dtype in self._known.items() if dtype == "string"]
        strings += [name for name in self.texts if name not in strings]
        times = [name for block in self.datetime_blocks for name in block.columns]
        times += [b.elapsed_since for b in self.datetime_blocks if b.elapsed_since is not None and b.since_s is None]
        read = [item for _, types in self.parsed.values() for item in types.items()]
        numbers += [name for name, dtype in read if dtype in ("float", "bool")]
        strings += [name for name, dtype in read if dtype == "string"]
        times += [name for name, dtype in read if dtype == "timestamp"]
        found: dict[str, Kind] = dict.fromkeys(numbers, "number")
        found |= dict.fromkeys(strings, "string")
        return found | dict.fromkeys(times, "time")

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Columns of the data that a request carries."""
        return tuple(self.kinds)

    @property
    def raw_numbers(self) -> tuple[str, ...]:
        """The inputs that are numbers: profiles watch these."""
        return tuple(name for name, kind in self.kinds.items() if kind == "number")

    @cached_property
    def parsed(self) -> dict[str, tuple[Expression, dict[str, str]]]:
        """Each expression, and the dtype that it takes each of its columns for.

        Raises: ValueError for an expression that is none."""
        return {name: _typed(text, self._known) for name, text in self.expressions.items()}

    @property
    def _known(self) -> dict[str, str]:
        """Dtypes that the blocks give away."""
        strings = [name for block in self.categorical_blocks for name in block.columns]
        strings += [name for block in self.text_blocks for name in block.columns]
        times = [name for block in self.datetime_blocks for name in block.columns]
        return dict.fromkeys(strings, "string") | dict.fromkeys(times, "timestamp")


def hashed_names(column: str, n_buckets: int) -> tuple[str, ...]:
    """Names of the columns that a hashed column becomes."""
    return tuple(f"{column}_hash{i}" for i in range(n_buckets))


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _typed(text: str, known: Mapping[str, str]) -> tuple[Expression, dict[str, str]]:
    """The expression, and the dtypes it takes its columns for: the first ones that fit, numbers before others.

    Raises: ValueError, the parser's complaint, when none fit."""
    names = _names(text)
    unknown = [name for name in names if name not in known]
    first: ValueError | None = None
    # Whoever writes so many columns of unclear dtype into one expression may list the strings under `categorical`.
    for types in itertools.islice(
        itertools.product(("float", "string", "timestamp", "bool"), repeat=len(unknown)), 256
    ):
        dtypes = {name: known[name] for name in names if name in known} | dict(zip(unknown, types, strict=True))
        try:
            return parse(text, dtypes), dtypes
        except ValueError as exc:
            first = first or exc
    raise first or ValueError("is no expression")


def _names(text: str) -> tuple[str, ...]:
    """Columns that an expression may mean: every name in it, and what `col` is called with."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()  # for the parser to say
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    names = [node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called]
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "col" and node.args:
            names += [str(node.args[0].value)] if isinstance(node.args[0], ast.Constant) else []
    return _once(names)
