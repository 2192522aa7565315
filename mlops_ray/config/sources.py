"""The `source:` block: where rows come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mlops_ray.config.base import Config, ImportPath


class Source(Config):
    """Where rows come from: a Ray Data reader by name, or a Python function that returns a `ray.data.Dataset`."""

    kind: Literal["parquet", "csv", "json", "delta", "python"]
    path: str | tuple[str, ...] | None = None
    function: ImportPath | None = None
    """`module:function`, for `kind: python`; called with `options` as keywords."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords for the reader or the function."""

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if self.kind == "python" and self.function is None:
            raise ValueError("kind: python needs `function: module:function`")
        if self.kind != "python" and not self.path:
            raise ValueError(f"kind: {self.kind} needs `path:`")
        return self
