"""Alerting rules for Prometheus, made from a project file: what to wake somebody for, and what to do then. Pure.

Thresholds are the project file's own (deadlines, margins, horizons, the breaker) or those that the monitor calibrated,
which it exports as `mlops_ray_detector_state`: no rule knows a number that somebody would have to keep in step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mlops_ray.config import DAY_S, Project
from mlops_ray.monitoring.prometheus.promql import duration, newest, over, selected
from mlops_ray.serving.log.tally import SCORE_S

Severity = Literal["critical", "warning", "info"]

# A lease of the controller lasts 20 s and is renewed at half of that: a minute without is no hiccup.
_LEASE_OVERDUE_S = 60
_CONTROLLER = 'lease="controller"'
# Without a plan for failures: what `rollout` tolerates by default.
_FAILURES = 0.01
# Below it realised quality speaks for a minority of the rows.
_COVERAGE = 0.5


@dataclass(frozen=True)
class Alert:
    """One alerting rule. pending_s: how long its expression must hold."""

    name: str
    expr: str
    pending_s: float
    severity: Severity
    summary: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        """As Prometheus' rule files have it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": duration(self.pending_s),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description},
        }


def alerts(project: Project, files: str) -> list[Alert]:
    """Args: files: see `rules`."""
    return [
        *_of_processes(project, files),
        *_of_capture(project, files),
        *_of_detectors(project, files),
        *_of_rollouts(project, files),
        *_of_retrains(project, files),
    ]


def _of_processes(project: Project, files: str) -> Iterator[Alert]:
    name, idle_s = project.project, project.capture.commit_idle_s
    decided = newest(project, "mlops_ray_decision_time_seconds")
    watermark, pending = newest(project, "mlops_ray_watermark_seconds"), newest(project, "mlops_ray_pending_seconds")
    yield Alert(
        "MlopsRayMonitorMissing",
        f"absent({selected('mlops_ray_watermark_seconds', project)})",
        300,
        "critical",
        f"The monitor of {name} cannot be scraped",
        "Windows are not judged and no retrain starts; answers go on. See whether port "
        f"{project.monitoring.metrics_port} answers on the monitor's node; `mlops-ray status {files}` reads the state "
        f"without it, `mlops-ray up {files}` starts it again.",
    )
    stands = f"changes({selected('mlops_ray_decision_time_seconds', project)}[10m])"
    yield Alert(
        "MlopsRayMonitorStalled",
        f"max by (project) ({stands}) == 0 and {watermark} - {decided} > 0",
        300,
        "critical",
        f"The monitor of {name} answers but judges nothing",
        "Traffic has gone on for {{ $value | humanizeDuration }} of event time since its last turn. Its log (the actor "
        f"monitor:{name}, in Ray's dashboard) says why; the state database may be out of reach. `mlops-ray status "
        f"{files}`.",
    )
    yield Alert(
        "MlopsRayControllerSilent",
        f"time() - {newest(project, 'mlops_ray_lease_expiry_timestamp_seconds', more=_CONTROLLER)} "
        f"> {_LEASE_OVERDUE_S}",
        120,
        "critical",
        f"Nobody steers the rollouts of {name}",
        "The controller's lease ran out {{ $value | humanizeDuration }} ago: a bad canary keeps its share and is not "
        f"rolled back. `mlops-ray up {files}` starts a controller; `mlops-ray rollout abort {files}` takes a canary "
        "out at once.",
    )
    late = duration(max(600.0, 10 * idle_s))
    stuck = f"changes({selected('mlops_ray_watermark_seconds', project)}[{late}])"
    yield Alert(
        "MlopsRayCollectorBehind",
        f"max by (project) ({stuck}) == 0 and {pending} - {watermark} > 0",
        300,
        "warning",
        f"A collector of {name} does not pass its spool",
        "Rows wait in a node's spool and decision time waits for them, by {{ $value | humanizeDuration }} of event "
        f"time so far. Nothing is lost while the disk holds. See the logs of the actors collector:… of "
        f"{name} in Ray's dashboard; `mlops-ray up {files}` starts a collector that is gone.",
    )
    quiet = max(project.monitoring.idle_s, 4 * idle_s)
    yield Alert(
        "MlopsRayNoTraffic",
        f"time() - ({newest(project, 'mlops_ray_arrival_timestamp_seconds')} > 0) > {quiet:.0f}",
        900,
        "warning",
        f"No captured rows of {name} arrive",
        "Nothing has arrived for {{ $value | humanizeDuration }}. Either nobody asks, or answers are not captured: ask "
        f"`/{name}/readyz`, and compare with `mlops-ray status {files}`.",
    )


def _of_capture(project: Project, files: str) -> Iterator[Alert]:
    name, span, horizon_s = project.project, over(project), project.monitoring.label_horizon_s
    lost = selected("mlops_ray_uncaptured_rows_total", project, 'reason=~"disk|overflow"')
    yield Alert(
        "MlopsRayRowsNotCaptured",
        f"sum by (project, reason) (rate({lost}[{span}])) > 0",
        300,
        "critical",
        f"Answers of {name} are not recorded ({{{{ $labels.reason }}}})",
        "{{ $value | humanize }} rows a second are answered and stand in no log: windows, labels and retrains miss "
        f"them. `disk`: make room on the nodes. `overflow`: the spool has reached {project.capture.spool_mb:g} MB, for "
        f"the store cannot be written. The table `uncaptured` of the log keeps the counts; `mlops-ray status {files}`.",
    )
    # Beyond the last bucket but one a quantile says no more than that.
    slow = min(project.serving.canary_deadline_s, SCORE_S[-2])
    buckets = selected("mlops_ray_score_seconds_bucket", project)
    yield Alert(
        "MlopsRayScoringSlow",
        f"histogram_quantile(0.99, sum by (project, version, le) (rate({buckets}[{span}]))) > {slow:g}",
        600,
        "warning",
        f"v{{{{ $labels.version }}}} of {name} is slow",
        f"One row in a hundred takes {{{{ $value | humanizeDuration }}}} in the predictor, above {slow:g} s: a "
        f"canary is given {project.serving.canary_deadline_s:g} s for a request. Look for a busy machine first; "
        f"a version without an ONNX graph is slow by itself (`mlops-ray card {files} {{{{ $labels.version }}}}`).",
    )
    lag = f"{newest(project, 'mlops_ray_decision_time_seconds')} - {newest(project, 'mlops_ray_label_seconds')}"
    yield Alert(
        "MlopsRayLabelsLate",
        f"{lag} > {horizon_s:.0f}",
        3600,
        "warning",
        f"No labels of {name} arrive",
        f"The newest is {{{{ $value | humanizeDuration }}}} old, beyond the label horizon of {duration(horizon_s)}: "
        "quality is judged on nothing, rollouts wait, retrains lack rows. See to whoever sends "
        f"`POST /{name}/feedback`; `mlops-ray log query {files} --labels` shows those there are.",
    )
    yield Alert(
        "MlopsRayLabelCoverageLow",
        f"{newest(project, 'mlops_ray_label_coverage')} < {_COVERAGE:g}",
        3600,
        "warning",
        f"Few rows of {name} get a label",
        "Of the rows in the newest mature window {{ $value | humanizePercentage }} are labelled: realised quality "
        f"speaks for these only. `mlops-ray status {files} --json` has the windows before; raise "
        "monitoring.label_horizon_s if labels just come later.",
    )


def _of_detectors(project: Project, files: str) -> Iterator[Alert]:
    name, window_s = project.project, project.monitoring.window_s
    more = f"`mlops-ray status {files} --json` says since when, by how much and what the policy made of it."
    told: dict[str, tuple[str, str, Severity, str, str]] = {
        "drift": (
            "MlopsRayDrift",
            'detector="drift"',
            "warning",
            f"Inputs of {name} have drifted",
            "At least one feature's PSI is above its calibrated limit in the newest window. Look at the worst features "
            "first: an upstream change is mended there, and a true shift is for a retrain.",
        ),
        "quality": (
            "MlopsRayQuality",
            'detector="quality"',
            "critical",
            f"The quality of {name} has fallen",
            "Realised log-loss of the newest mature window is above its calibrated limit. If a promotion came before, "
            f"`mlops-ray rollout rollback {files}` takes it back; else a retrain is due.",
        ),
        "estimated": (
            "MlopsRayEstimatedQuality",
            'detector="estimated"',
            "warning",
            f"The quality of {name} is expected to have fallen",
            "Estimated without labels, by estimates that have proved true before. Labels will tell; prepare a retrain.",
        ),
        "other": (
            "MlopsRayDetector",
            'detector!~"drift|quality|estimated"',
            "warning",
            f"Detector {{{{ $labels.detector }}}} of {name} alarms",
            "It looks at what windows see late or not at all.",
        ),
    }
    for alert, which, severity, summary, description in told.values():
        state = newest(project, "mlops_ray_detector_state", "detector", f'{which}, state="alarm"')
        yield Alert(alert, f"{state} == 1", 60, severity, summary, f"{description} {more}")
    unable = newest(project, "mlops_ray_detector_state", "detector", 'state="uncalibrated"')
    yield Alert(
        "MlopsRayUncalibrated",
        f"{unable} == 1",
        3600,
        "info",
        f"Detector {{{{ $labels.detector }}}} of {name} has no limit",
        "The reference is too short for the false-alarm budget, so it alarms nobody. More rows of training data, a "
        f"shorter monitoring.window_s or a larger monitoring.false_alarms_per_month give it one. {more}",
    )
    end = newest(project, "mlops_ray_detector_window_end_seconds", more='detector="drift"')
    yield Alert(
        "MlopsRayWindowsOverdue",
        f"{newest(project, 'mlops_ray_decision_time_seconds')} - {end} > {2 * window_s:.0f}",
        900,
        "warning",
        f"Windows of {name} are not judged",
        f"The newest judged window of {duration(window_s)} ended {{{{ $value | humanizeDuration }}}} ago in decision "
        f"time. The log of the actor monitor:{name} says what it fails at. {more}",
    )


def _of_rollouts(project: Project, files: str) -> Iterator[Alert]:
    name, plan, span = project.project, project.rollout, over(project)
    margin = next((a.margin for a in plan.judged_by(project.task) if a.title == "failures"), _FAILURES)
    status = f"`mlops-ray rollout status {files}` has the evidence."
    tried = f"sum by (project, version) (rate({selected('mlops_ray_canary_rows_total', project)}[{span}]))"
    failed = f"sum by (project, version) (rate({selected('mlops_ray_canary_failures_total', project)}[{span}]))"
    yield Alert(
        "MlopsRayCanaryFails",
        f"{failed} / ({tried} > 0) > {margin:g}",
        300,
        "warning",
        f"The canary v{{{{ $labels.version }}}} of {name} fails",
        "It failed {{ $value | humanizePercentage }} of its rows; stable answered them. The rollout ends by itself "
        f"once that is proven; `mlops-ray rollout abort {files}` ends it now. {status}",
    )
    decided = newest(project, "mlops_ray_decision_time_seconds")

    def waits(phases: str) -> str:
        since = newest(project, "mlops_ray_rollout_since_seconds", "version, phase", f'phase=~"{phases}"')
        return f"{decided} - on (project) group_right () {since}"

    yield Alert(
        "MlopsRayRolloutUndecided",
        f"{waits('ramping|shadowing')} > {plan.step_max_s:.0f}",
        900,
        "warning",
        f"The rollout of v{{{{ $labels.version }}}} of {name} does not decide",
        f"Its step has lasted {{{{ $value | humanizeDuration }}}}, the plan allows {duration(plan.step_max_s)} "
        f"(on_inconclusive: {plan.on_inconclusive}). Too few labelled rows or a margin that is too small: {status}",
    )
    yield Alert(
        "MlopsRayRolloutWaitsForPeople",
        f"{waits('pending|paused')} > {DAY_S:g}",
        300,
        "warning",
        f"The rollout of v{{{{ $labels.version }}}} of {name} waits for people",
        "It has been {{ $labels.phase }} for {{ $value | humanizeDuration }}. `mlops-ray approve` or `mlops-ray "
        f"reject` decides what waits for an approval, `mlops-ray rollout resume {files}` goes on with a paused one. "
        f"{status}",
    )
    end = newest(project, "mlops_ray_rollout_end_seconds", more='phase="rolled back"')
    yield Alert(
        "MlopsRayRolledBack",
        f"{decided} - {end} < {DAY_S:g}",
        60,
        "warning",
        f"A version of {name} was rolled back",
        f"Stable is what it was. {status} `mlops-ray ledger show {files}` has why.",
    )


def _of_retrains(project: Project, files: str) -> Iterator[Alert]:
    name, plan = project.project, project.retraining
    ledger = f"`mlops-ray ledger show {files}` has the reasons."

    def since(statuses: str) -> str:
        metric = "mlops_ray_retrain_updated_timestamp_seconds"
        return newest(project, metric, "status", f'status=~"{statuses}"')

    yield Alert(
        "MlopsRayRetrainOverdue",
        f"time() - {since('decided|submitted')} > {plan.timeout_s + 300:.0f}",
        300,
        "critical",
        f"A retrain of {name} hangs",
        f"It has been {{{{ $labels.status }}}} for {{{{ $value | humanizeDuration }}}}, and the monitor should have "
        f"ended it after {duration(plan.timeout_s)}. Look at the job in Ray's dashboard, and at the monitor's "
        f"log. {ledger}",
    )
    yield Alert(
        "MlopsRayRetrainFailed",
        f"time() - {since('failed|rejected')} < {DAY_S:g}",
        60,
        "warning",
        f"A retrain of {name} was {{{{ $labels.status }}}}",
        "`failed`: the job broke. `rejected`: the gates refused the candidate, which is their work; stable stays. "
        f"{ledger}",
    )
    yield Alert(
        "MlopsRayRetrainBreakerOpen",
        f"{newest(project, 'mlops_ray_retrain_failures')} >= {plan.max_failures}",
        300,
        "critical",
        f"{name} does not retrain any more",
        "{{ $value }} retrains in a row failed or were rejected, so the circuit breaker holds the next ones back for "
        f"{duration(plan.backoff_s)} and longer. Mend the cause, then `mlops-ray retrain {files}`, which waits for no "
        f"breaker. {ledger}",
    )
