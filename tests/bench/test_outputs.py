"""Every output file has the shape that its reader expects, and the numbers of the result."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest

from expertile.bench.gate import Outcome, decide
from expertile.bench.outputs import FORMATS, render
from expertile.bench.result import Case, from_json
from expertile.bench.verdict import Rules

from .fakes import gate_result, run_result

ODD = 'mla_decode[heads=16,w="<&>|\x1b[31m]'     # a name that XML, HTML and Markdown must escape


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """One case of every kind."""
    found = gate_result({"same": 1.0, "slow": 1.1, "fast": 0.9, ODD: 1.0})
    noisy = gate_result({"unclear": 1.03}, noise=0.03).cases
    wrong = Case("wrong", "moe_route", "wrong", error="case 'tiny': \x00 NaN at [3, 4] <b>")
    new = replace(found.cases[0], name="new", status="new", samples={
        "head": found.cases[0].samples["head"]}, error="base has no such case")
    return decide(replace(found, cases=(*found.cases, *noisy, wrong, new)), Rules())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_renders_a_gate_a_run_and_nothing(name: str, outcome: Outcome) -> None:
    assert render(name, outcome.result, outcome).strip()
    assert render(name, run_result({"a": 10.0}), None).strip()
    assert render(name, replace(run_result({}), cases=()), None).strip()


def test_our_own_json_reads_back(outcome: Outcome) -> None:
    text = render("json", outcome.result, outcome)
    assert from_json(json.loads(text), "text") == outcome.result
    said = json.loads(render("verdicts", outcome.result, outcome))
    assert said["exit_code"] == 4 and said["meaning"] == "wrong results"
    assert len(said["result"]["cases"][0]["samples"]["head"]) == 40


def test_junit(outcome: Outcome, tmp_path: Path) -> None:
    text = render("junit", outcome.result, outcome)
    suite = ElementTree.fromstring(text)[0]
    kinds = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert kinds["slow"][0] == "failure" and kinds["wrong"] == ["error"]
    assert kinds["unclear"][0] == "skipped" and kinds["same"] == ["system-out"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"),
            suite.get("skipped")) == ("7", "1", "1", "2")
    assert "Chance to call a slow-down" in (suite.findtext("system-out") or "")
    schema = pytest.importorskip("xmlschema").XMLSchema(str(Path(__file__).parent / "junit.xsd"))
    (tmp_path / "junit.xml").write_text(text)
    schema.validate(str(tmp_path / "junit.xml"))


def test_github_action_benchmark(outcome: Outcome) -> None:
    rows = json.loads(render("github-action-benchmark", outcome.result, outcome))
    assert len(rows) == 6
    for row in rows:                 # customSmallerIsBetter: these names, these types
        assert set(row) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(row["value"], float) and row["unit"] == "us"
    slow = next(r for r in rows if r["name"] == "slow")
    assert slow["value"] == pytest.approx(550, rel=0.01)


def test_pytest_benchmark(outcome: Outcome) -> None:
    data = json.loads(render("pytest-benchmark", outcome.result, outcome))
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} == set(data)
    row = next(b for b in data["benchmarks"] if b["name"] == "slow")
    stats = row["stats"]
    assert stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]
    case = outcome.result.case("slow")
    assert case is not None and stats["rounds"] == len(stats["data"]) == 80
    assert stats["mean"] == pytest.approx(fmean(case.flat("head")) * 1e-6)
    assert stats["ops"] == pytest.approx(1 / stats["mean"])


def test_bencher_metric_format(outcome: Outcome) -> None:
    data = json.loads(render("bmf", outcome.result, outcome))
    for measures in data.values():
        for metric in measures.values():
            assert set(metric) <= {"value", "lower_value", "upper_value"}
    latency = data["same"]["latency"]
    assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]
    assert latency["value"] == pytest.approx(500_000, rel=0.01)       # nanoseconds


def test_otava(outcome: Outcome) -> None:
    head, row = csv.reader(io.StringIO(render("otava", outcome.result, outcome)))
    assert head[:2] == ["time", "commit"] and len(head) == len(row) == 8
    assert float(row[head.index("fast")]) == pytest.approx(450, rel=0.01)


def test_markdown(outcome: Outcome) -> None:
    text = render("markdown", outcome.result, outcome)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    slow = next(line for line in table if "`slow`" in line)
    assert "**SLOW**" in slow and "+10." in slow
    assert "Chance to call a slow-down of one case SLOW: 3 %:" in text


class _Page(HTMLParser):
    """Collects what a browser would load and what stands open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.circles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "action", "data")]
        self.circles += tag == "circle"
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return


def test_html_is_one_file(outcome: Outcome) -> None:
    text = render("html", outcome.result, outcome)
    page = _Page()
    page.feed(text)
    assert page.open == [] and page.loads == []      # nothing left open, nothing fetched
    assert "<script" not in text and "\x1b" not in text.replace("\x1b[31m", "")
    assert page.circles > 6 * 80                     # every sample of every timed case
    for plot in ("Roofline", "Change of each case", "Samples"):
        assert plot in text
    assert "&lt;b&gt;" in text
