"""One result object, many files: what other tools read, and what people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from ..gate import Outcome
from ..result import Result
from . import ci, html, junit, markdown, plots

Render = Callable[[Result, Outcome | None], str]


def own(result: Result, outcome: Outcome | None) -> str:
    """Our own JSON: a bare result, so that `compare` and `report` read it back."""
    return json.dumps(result.to_json(), separators=(",", ":")) + "\n"


def verdicts(result: Result, outcome: Outcome | None) -> str:
    """Verdicts, the first judgement and both results."""
    return json.dumps(outcome.to_json() if outcome else {"result": result.to_json()}) + "\n"


FORMATS: Mapping[str, Render] = {
    "json": own, "verdicts": verdicts, "markdown": markdown.render, "junit": junit.render,
    "html": html.render, "github-action-benchmark": ci.github_action_benchmark,
    "pytest-benchmark": ci.pytest_benchmark, "bmf": ci.bencher, "otava": ci.otava}

PICTURES: Mapping[str, Callable[[Result], bytes]] = {
    "png": plots.roofline, "growth-png": plots.growth}


def render(format_name: str, result: Result, outcome: Outcome | None) -> str:
    """The text of a format."""
    if format_name not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join((*FORMATS, *PICTURES))}, got "
                         f"{format_name!r}")
    return FORMATS[format_name](result, outcome)
