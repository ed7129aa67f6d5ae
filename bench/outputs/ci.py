"""What other tools read: github-action-benchmark, pytest-benchmark, Bencher, Apache Otava."""

from __future__ import annotations

import csv
import io
import json
import statistics
from typing import Any

from ..gate import Outcome
from ..result import Case, Result


def _timed(result: Result) -> list[Case]:
    return [c for c in result.cases if c.samples.get("head")]


def _low(case: Case) -> float:
    us = case.us("head")
    assert us is not None            # only timed cases come here
    return us


def github_action_benchmark(result: Result, outcome: Outcome | None) -> str:
    """`tool: customSmallerIsBetter` of benchmark-action/github-action-benchmark."""
    rows = []
    for case in _timed(result):
        samples = case.flat("head")
        percent = case.percent_of_floor("head")
        rows.append({"name": case.name, "unit": "us", "value": _low(case),
                     "range": f"± {statistics.pstdev(samples):.3g}",
                     "extra": "\n".join(filter(None, (
                         f"{percent:.0f} % of the machine's limit" if percent else "",
                         f"{result.machine.model}; {result.machine.device}")))})
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def pytest_benchmark(result: Result, outcome: Outcome | None) -> str:
    """The JSON that `pytest-benchmark compare` and its dashboards read; seconds."""
    return json.dumps({
        "machine_info": {"node": result.machine.host, "machine": result.machine.model,
                         "cpu": {"brand_raw": result.machine.model},
                         "python_version": result.toolchain.get("head", {}).get("python", "")},
        "commit_info": {"id": result.revision.get("head", "").partition("+")[0],
                        "dirty": result.revision.get("head", "").endswith("+changes"),
                        "project": "expertile", "branch": "", "time": result.created},
        "benchmarks": [_pytest_row(case) for case in _timed(result)],
        "datetime": result.created, "version": "5.2.0"}, indent=1) + "\n"


def _pytest_row(case: Case) -> dict[str, Any]:
    data = sorted(us * 1e-6 for us in case.flat("head"))
    quarters = (statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1
                else [data[0]] * 3)
    mean = statistics.fmean(data)
    iqr = quarters[2] - quarters[0]
    low, high = quarters[0] - 1.5 * iqr, quarters[2] + 1.5 * iqr
    spread = statistics.stdev(data) if len(data) > 1 else 0.0
    inside = [x for x in data if low <= x <= high]
    return {"group": case.group, "name": case.name, "fullname": case.name, "params": None,
            "param": None, "extra_info": {"p20": _low(case) * 1e-6, "status": case.status,
                                              "percent_of_limit": case.percent_of_floor("head")},
            "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(data),
                        "max_time": 0.0, "min_time": 0.0, "warmup": True},
            "stats": {"min": data[0], "max": data[-1], "mean": mean, "stddev": spread,
                      "rounds": len(data), "median": statistics.median(data), "iqr": iqr,
                      "q1": quarters[0], "q3": quarters[2],
                      "iqr_outliers": len(data) - len(inside),
                      "stddev_outliers": sum(abs(x - mean) > spread for x in data),
                      "outliers": f"{sum(abs(x - mean) > spread for x in data)};"
                                  f"{len(data) - len(inside)}",
                      "ld15iqr": inside[0], "hd15iqr": inside[-1], "ops": 1 / mean,
                      "total": sum(data), "iterations": case.inner, "data": data}}


def bencher(result: Result, outcome: Outcome | None) -> str:
    """Bencher Metric Format: nanoseconds under the built-in measure `latency`."""
    metrics = {}
    for case in _timed(result):
        samples = case.flat("head")
        measures: dict[str, Any] = {"latency": {
            "value": _low(case) * 1e3, "lower_value": min(samples) * 1e3,
            "upper_value": max(samples) * 1e3}}
        if percent := case.percent_of_floor("head"):
            measures["percent-of-limit"] = {"value": percent}
        metrics[case.name] = measures
    return json.dumps(metrics, indent=1) + "\n"


def otava(result: Result, outcome: Outcome | None) -> str:
    """One row of Apache Otava's CSV importer: time, commit, then a column a case. Append the rows
    of many runs; `history export` writes a whole series."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    timed = _timed(result)
    writer.writerow(["time", "commit", *(c.name for c in timed)])
    writer.writerow([result.created, result.revision.get("head", ""),
                     *(f"{_low(c):.6g}" for c in timed)])
    return text.getvalue()
