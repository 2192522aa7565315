"""What a monitor reads of a simulation: its rows as the prediction log has them, and profiles of its blocks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.profile import fold
from mlops_ray.serving.log import tables as log
from mlops_ray.simulation.history import History
from mlops_ray.simulation.trial import Answers, times
from mlops_ray.state import Tx
from mlops_ray.training import target
from mlops_ray.training.artifact.model import Model


def rows(project: Project, history: History, answers: Answers, start: float, end: float, known_by: float) -> pa.Table:
    """The rows of [start, end), as `monitoring.captured.rows` gives them, with inputs and labels both."""
    there = history.between(start, end)
    known = (history.labelled[there] <= known_by) & ~np.isnan(history.y[there])
    schema = log.prediction_schema(project)
    found = {
        "prediction_id": pa.array([str(i) for i in range(there.start, there.stop)], pa.string()),
        "at": times(history.times[there]),
        "event_time": times(history.times[there]),
        "key": pa.array(history.keys[there], pa.string()),
        "stable": pa.array(answers.stable[there], pa.int64()),
        "stable_score": pa.array(answers.stable_score[there], pa.float64()),
        "label": pa.array(history.y[there], pa.float64(), mask=~known),
        "label_time": times(np.where(known, history.labelled[there], np.nan)),
    }
    for name, values in history.inputs(there).items():
        kind = schema.field(f"x_{name}").type
        is_time = project.features.kinds[name] == "time"
        found[f"x_{name}"] = times(values) if is_time else pa.array(values, kind)
    return pa.table(found)


def keep(tx: Tx, project: Project, history: History, answers: Answers, there: slice, model: Model) -> None:
    """Save the profile of a block's rows, which one version scored as stable: `model`."""
    counted = target.counted(project.task, answers.stable_score[there])
    profile = fold(model.reference.bins, history.inputs(there), counted)
    block_s = project.monitoring.block_s
    block = float(history.times[there.start] // block_s * block_s)
    tx.save_profile(project.project, int(answers.stable[there.start]), block, profile.to_dict())
