"""The project file: typed, frozen, strict about typos.

`load_project(paths, env=...)` reads one YAML file and any number of overlays and returns a `Project`, or raises one
`ConfigError` that lists every mistake with file, line, field, value and remedy.

Units stand in names: `_s` seconds, `_mb` mebibytes, `share` a fraction in [0, 1].
"""

from mlops_ray.config.base import DAY_S, Config
from mlops_ray.config.features import Categorical, Features, Numeric
from mlops_ray.config.loading import load_project, load_source, parse_portable, portable
from mlops_ray.config.operation import (
    Capture,
    Cluster,
    Margins,
    Monitoring,
    Retraining,
    RolloutPlan,
    Serving,
    Storage,
)
from mlops_ray.config.project import Project
from mlops_ray.config.sources import Paging, Source, TimeRange
from mlops_ray.config.training import Candidate, Choice, Gates, IntRange, Limit, Metric, Search, Space, Split, Uniform
from mlops_ray.config.validation import Column, Validation

__all__ = [
    "DAY_S",
    "Candidate",
    "Capture",
    "Categorical",
    "Choice",
    "Cluster",
    "Column",
    "Config",
    "Features",
    "Gates",
    "IntRange",
    "Limit",
    "Margins",
    "Metric",
    "Monitoring",
    "Numeric",
    "Paging",
    "Project",
    "Retraining",
    "RolloutPlan",
    "Search",
    "Serving",
    "Source",
    "Space",
    "Split",
    "Storage",
    "TimeRange",
    "Uniform",
    "Validation",
    "load_project",
    "load_source",
    "parse_portable",
    "portable",
]
