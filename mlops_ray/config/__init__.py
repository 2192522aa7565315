"""The project file: typed, frozen, strict about typos.

`load_project(paths, env=...)` reads one YAML file and any number of overlays and returns a `Project`, or raises one
`ConfigError` that lists every mistake with file, line, field, value and remedy.

Units stand in names: `_s` seconds, `_mb` mebibytes, `share` a fraction in [0, 1].
"""

from mlops_ray.config.about import About
from mlops_ray.config.alerts import Alerts
from mlops_ray.config.base import DAY_S, HOUR_S, Config
from mlops_ray.config.features import Categorical, Features, Numeric
from mlops_ray.config.loading import (
    load_log_plan,
    load_project,
    load_source,
    parse_portable,
    parse_storage,
    portable,
    portable_storage,
)
from mlops_ray.config.operation import (
    Capture,
    Cluster,
    Monitoring,
    Retraining,
    Serving,
    Storage,
)
from mlops_ray.config.project import Project, Task
from mlops_ray.config.recorded import LogPlan
from mlops_ray.config.rollout import RolloutPlan
from mlops_ray.config.sources import Paging, Source, TimeRange
from mlops_ray.config.training import (
    Approval,
    CalibrationGate,
    Callback,
    Candidate,
    Choice,
    Cost,
    CrossValidation,
    EarlyStopping,
    FairnessGate,
    Gates,
    InfrastructureGate,
    IntRange,
    LeakageGate,
    Limit,
    Metric,
    Monotonic,
    OverfitGate,
    Preset,
    RobustnessGate,
    Search,
    SearchMetric,
    SliceGate,
    Space,
    Split,
    Threshold,
    Uniform,
)
from mlops_ray.config.validation import Column, Validation

__all__ = [
    "DAY_S",
    "HOUR_S",
    "About",
    "Alerts",
    "Approval",
    "CalibrationGate",
    "Callback",
    "Candidate",
    "Capture",
    "Categorical",
    "Choice",
    "Cluster",
    "Column",
    "Config",
    "Cost",
    "CrossValidation",
    "EarlyStopping",
    "FairnessGate",
    "Features",
    "Gates",
    "InfrastructureGate",
    "IntRange",
    "LeakageGate",
    "Limit",
    "LogPlan",
    "Metric",
    "Monitoring",
    "Monotonic",
    "Numeric",
    "OverfitGate",
    "Paging",
    "Preset",
    "Project",
    "Retraining",
    "RobustnessGate",
    "RolloutPlan",
    "Search",
    "SearchMetric",
    "Serving",
    "SliceGate",
    "Source",
    "Space",
    "Split",
    "Storage",
    "Task",
    "Threshold",
    "TimeRange",
    "Uniform",
    "Validation",
    "load_log_plan",
    "load_project",
    "load_source",
    "parse_portable",
    "parse_storage",
    "portable",
    "portable_storage",
]
