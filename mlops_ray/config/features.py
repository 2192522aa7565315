"""The `features:` block: the model's inputs and what is done to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlops_ray.config.base import Config


class Numeric(Config):
    """Numeric features: imputed, then scaled."""

    columns: tuple[str, ...] = ()
    impute: Literal["mean", "constant"] = "mean"
    fill_value: float = 0.0
    scale: Literal["standard", "none"] = "standard"


class Categorical(Config):
    """Categorical features: one column per category; categories rarer than `min_share` count as unknown."""

    columns: tuple[str, ...] = ()
    min_share: Annotated[float, Field(ge=0, lt=1)] = 0.001


class Features(Config):
    """The model's inputs. Whatever stands here is asked for in every request."""

    numeric: Numeric = Numeric()
    categorical: Categorical = Categorical()

    @property
    def columns(self) -> tuple[str, ...]:
        """Numeric columns, then categorical ones, in the file's order: the model's input order."""
        return self.numeric.columns + self.categorical.columns
