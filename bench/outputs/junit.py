"""JUnit XML as Jenkins and GitLab read it: slow is a failure, ambiguous is skipped."""

from __future__ import annotations

import re
from xml.etree import ElementTree as xml

from ..gate import Outcome
from ..result import Case, Result
from .markdown import change, headline, limits_line, power_line

_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    """Without what XML 1.0 cannot hold: a compiler's colours, for one."""
    return _ILLEGAL.sub("?", text)


def _add(parent: xml.Element, kind: str, message: str) -> None:
    node = xml.SubElement(parent, kind, message=_clean(message)[:500])
    if kind != "skipped":
        node.set("type", kind)
        node.text = _clean(message)


def _case(suite: xml.Element, case: Case, outcome: Outcome | None) -> None:
    node = xml.SubElement(suite, "testcase", name=_clean(case.name), classname=_clean(case.group),
                          time=f"{sum(case.flat('head')) * case.inner * 1e-6:.6f}")
    said = outcome.verdict(case.name) if outcome else None
    if case.status in ("wrong", "failed"):
        _add(node, "error", f"{case.status}: {case.error}")
    elif case.status == "new":
        _add(node, "skipped", case.error)
    elif said is not None and said.verdict == "SLOW":
        _add(node, "failure", f"{change(said.ratio)} [{change(said.low)}, {change(said.high)}], "
                              f"limit {change(1 + said.delta)} ({said.delta_by})")
    elif said is not None and said.verdict == "AMBG":
        _add(node, "skipped", f"ambiguous: {said.why}")
    if (us := case.us("head")) is not None:
        out = xml.SubElement(node, "system-out")
        out.text = f"{us:.4g} us" + (f", base {b:.4g} us" if (b := case.us("base")) else "")
        if percent := case.percent_of_floor("head"):
            out.text += f", {percent:.0f} % of the machine's limit"


def render(result: Result, outcome: Outcome | None) -> str:
    """The document."""
    root = xml.Element("testsuites")
    suite = xml.SubElement(root, "testsuite", name="expertile bench",
                           timestamp=result.created.removesuffix("Z"), hostname="localhost")
    for case in result.cases:
        _case(suite, case, outcome)
    whole = outcome.judgement.suite if outcome else None
    if whole is not None and whole.verdict == "SLOW":
        node = xml.SubElement(suite, "testcase", name="all cases together", classname="suite",
                              time="0")
        _add(node, "failure", f"{change(whole.ratio)} [{change(whole.low)}, {change(whole.high)}]")
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    suite.set("tests", str(sum(1 for _ in suite.iter("testcase"))))
    suite.set("time", f"{sum(float(n.get('time', 0)) for n in suite.iter('testcase')):.6f}")
    if outcome is not None:
        out = xml.SubElement(suite, "system-out")
        out.text = _clean("\n".join((headline(outcome), power_line(outcome), *outcome.notes,
                                     limits_line(result))))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, "unicode") + "\n"
