"""The `columns:` and `validation:` blocks: what rows must keep."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from mlops_ray.config.base import Config
from mlops_ray.config.expectations import AnyExpectation


class Column(Config):
    """One column of the data: what validation demands of it, offline and in requests."""

    name: str = Field(min_length=1)
    dtype: Literal["float", "int", "string", "bool", "timestamp"]
    nullable: bool = False
    required: bool = True
    """Whether the source and each request must have it; a column that may be absent is null then, so `nullable` too."""
    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] | None = None
    """Closed set of values (strings)."""
    pattern: str | None = None
    """Regular expression that the whole string must match."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as exc:
                raise ValueError(f"not a regular expression: {exc}") from exc
        return value

    @model_validator(mode="after")
    def _fits_dtype(self) -> Column:
        wrong = []
        if not self.required and not self.nullable:
            wrong.append("a column that is not required is null where it is absent; add nullable: true")
        if (self.min is not None or self.max is not None) and self.dtype not in ("float", "int"):
            wrong.append(f"min and max do not fit dtype {self.dtype}; remove them")
        if (self.values is not None or self.pattern is not None) and self.dtype != "string":
            wrong.append(f"values and pattern fit dtype string, not {self.dtype}; remove them")
        if self.min is not None and self.max is not None and self.min > self.max:
            wrong.append(f"min {self.min:g} is above max {self.max:g}; swap them")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Validation(Config):
    """What the data must keep beyond `columns:`, and what happens to rows that do not: quarantine, and a stop above
    `max_bad_share`."""

    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    min_rows: PositiveInt = 100
    unique: tuple[str, ...] = ()
    """Columns that together identify a row; a repeated row goes to quarantine."""
    expectations: tuple[AnyExpectation, ...] = ()
    """Of rows, keys and the table as a whole; those of rows and keys send bad rows to quarantine too."""
