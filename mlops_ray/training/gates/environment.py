"""Does what is installed fit what a version was trained with?"""

from __future__ import annotations

from collections.abc import Mapping

from mlops_ray.training.gates.verdict import CheckResult, Verdict

_CONVERTS = frozenset({"onnx", "onnxruntime", "skl2onnx", "onnxmltools"})
"""Of no consequence where scikit-learn serves."""
NAME = "infrastructure.environment"


def environment(lock: Mapping[str, str] | None, running: Mapping[str, str], engine: str) -> CheckResult:
    """Compare the versions that were recorded with those that run where versions are served.

    A pipeline of scikit-learn's objects promises nothing across its releases (scikit-learn's user guide, "Model
    persistence"): where scikit-learn serves, major and minor numbers must agree. An ONNX graph is read by any runtime
    of its opset or newer, and golden requests show what it answers: differences are told and refuse nothing.

    Args: lock, running: distribution (or `python`) to version, of the same names; None where nothing was recorded.
    """
    evidence = {"engine": engine, "recorded": dict(lock or {}), "running": dict(running)}
    if not lock:
        return CheckResult(NAME, Verdict.PASS, "skipped: the artifact records no versions", evidence)
    other = {name: version for name, version in sorted(lock.items()) if running.get(name) != version}
    told = {name: f"{name} {version} recorded, {running.get(name, 'none')} runs" for name, version in other.items()}
    if engine != "sklearn":
        aside = f"; {', '.join(told.values())}" if told else ""
        return CheckResult(
            NAME, Verdict.PASS, f"served by {engine}, which needs none of the recorded versions{aside}", evidence
        )
    unfit = [name for name in other if name not in _CONVERTS and _minor(running.get(name)) != _minor(lock[name])]
    if unfit:
        says = (
            f"scikit-learn serves it, and {'; '.join(told[name] for name in unfit)}: install those, or train again here"
        )
        return CheckResult(NAME, Verdict.FAIL, says, evidence)
    aside = f" up to patches ({', '.join(told.values())})" if told else ""
    return CheckResult(NAME, Verdict.PASS, f"{len(lock)} recorded versions are those that run{aside}", evidence)


def _minor(version: str | None) -> tuple[str, ...]:
    return tuple((version or "").split(".")[:2])
