"""What every block of the project file is made of."""

from __future__ import annotations

import zoneinfo
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DAY_S = 86_400.0
HOUR_S = 3_600.0
DTYPES = ("float", "int", "string", "bool", "timestamp")
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
IMPORT_PATH = r"^[A-Za-z_][\w.]*[.:][A-Za-z_]\w*$"
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]


def _known_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError("is no time zone of the IANA database; write one such as UTC or Europe/Berlin") from exc
    return name


Zone = Annotated[str, AfterValidator(_known_zone)]


class Config(BaseModel):
    """Base of all blocks: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
