"""A gate's result for what reads test reports: one test case per check, in JUnit's XML.

There is no standard; what Jenkins, GitLab and GitHub's actions read is described by the schema of the Jenkins xUnit
plugin and by https://github.com/testmoapp/junitxml; both leave out times that nobody took. A check that is inconclusive
is a `failure` of type `inconclusive` and no `skipped` one: consumers count skipped tests as no reason to stop, and an
inconclusive check is no pass. The suite's properties count the two apart.
"""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write, escaped or not (section 2.2)."""


def junit(name: str, result: GateResult) -> str:
    """The document. Args: name: of the suite, such as the project and the run."""
    failures = sum(check.verdict is not Verdict.PASS for check in result.checks)
    counts = {"tests": str(len(result.checks)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": _clean(name), **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(name), **counts, "skipped": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", {"name": "verdict", "value": result.verdict.value})
    for verdict, name_of in ((Verdict.FAIL, "failed"), (Verdict.INCONCLUSIVE, "inconclusive")):
        n = sum(check.verdict is verdict for check in result.checks)
        ElementTree.SubElement(properties, "property", {"name": name_of, "value": str(n)})
    for metric, estimate in result.metrics.items():
        ElementTree.SubElement(properties, "property", {"name": metric, "value": repr(estimate.value)})
    for check in result.checks:
        _case(suite, name, check)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, name: str, check: CheckResult) -> None:
    group = _clean(f"{name}.{check.name.partition('.')[0]}")
    case = ElementTree.SubElement(suite, "testcase", {"name": _clean(check.name), "classname": group})
    if check.verdict is not Verdict.PASS:
        told = {"message": _clean(check.detail), "type": check.verdict.value}
        failure = ElementTree.SubElement(case, "failure", told)
        failure.text = _clean(f"{check.detail}\n{json.dumps(check.evidence, indent=1, default=str)}")
    out = ElementTree.SubElement(case, "system-out")
    out.text = _clean(check.detail)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
