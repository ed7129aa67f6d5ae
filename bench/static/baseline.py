"""The baseline file: facts of every named config, as JSON that reads well in a pull request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..result import NoBaseline, write_text
from .diff import Finding, compare_points
from .points import (
    Point,
    coverage,
    examine_all,
    load_target,
    point_from_json,
    records_of,
    tasks_of,
    toolchain_of,
)

SCHEMA = "expertile-static/1"


@dataclass(frozen=True)
class Scope:
    """What is compiled; stands in the file, so that a check needs no options."""

    devices: tuple[str, ...]
    presets: tuple[str, ...]
    ops: tuple[str, ...] = ()        # none: all
    every: bool = False


@dataclass(frozen=True)
class DeviceFacts:
    """All points of a device."""

    toolchain: Mapping[str, str]
    points: Mapping[str, Point]
    coverage: Mapping[str, int]


@dataclass(frozen=True)
class Baseline:
    """The file."""

    scope: Scope
    devices: Mapping[str, DeviceFacts]


def collect(scope: Scope, workers: int, cache_dir: Path | None = None,
            done: Callable[[str], None] = lambda key: None) -> Baseline:
    """Compile everything in scope for every device, and read it."""
    found = {}
    for device in scope.devices:
        target = load_target(device, cache_dir)
        records = records_of(target)
        tasks = tasks_of(target, scope.presets, scope.ops, scope.every, records)
        found[device] = DeviceFacts(toolchain_of(target), examine_all(target, tasks, workers, done),
                                    coverage(target, tasks, records))
    return Baseline(scope, found)


def write(path: Path, baseline: Baseline) -> None:
    """One line a point: a change of one kernel is one line of a diff in git."""
    lines = ["{", f'"schema": "{SCHEMA}",', f'"scope": {json.dumps(asdict(baseline.scope))},',
             '"devices": {']
    devices = []
    for name, facts in sorted(baseline.devices.items()):
        points = ",\n".join(f"  {json.dumps(key)}: {json.dumps(p.to_json(), sort_keys=True)}"
                            for key, p in sorted(facts.points.items()))
        devices.append(f' "{name}": {{"toolchain": {json.dumps(dict(facts.toolchain))},\n'
                       f'  "coverage": {json.dumps(dict(facts.coverage))}, "points": {{\n'
                       f"{points}\n }}}}")
    write_text(path, "\n".join([*lines, ",\n".join(devices), "}", "}"]) + "\n")


def read(path: Path) -> Baseline:
    """The baseline; NoBaseline when it is missing or damaged."""
    remedy = f"make it with: expertile bench gate --static --update --baseline {path}"
    if not path.exists():
        raise NoBaseline(f"{path} does not exist; {remedy}")
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise NoBaseline(f"{path} must hold schema {SCHEMA!r}, got {data.get('schema')!r}; "
                             f"{remedy}")
        scope = data["scope"]
        return Baseline(
            Scope(tuple(scope["devices"]), tuple(scope["presets"]), tuple(scope["ops"]),
                  bool(scope["every"])),
            {name: DeviceFacts(d["toolchain"],
                               {key: point_from_json(p) for key, p in d["points"].items()},
                               d["coverage"]) for name, d in data["devices"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise NoBaseline(f"{path} is damaged ({type(e).__name__}: {e}); restore it from git, or "
                         f"{remedy}") from e


def compare(base: Baseline, head: Baseline) -> list[Finding]:
    """All differences, gravest first."""
    found: list[Finding] = []
    for device in base.scope.devices:
        if device not in head.devices or device not in base.devices:
            found.append(Finding("fail", "missing", device, "no facts of this device",
                                 "the baseline and its scope do not agree"))
            continue
        found += _device(device, base.devices[device], head.devices[device])
    grave = ("fail", "warn", "info")
    return sorted(found, key=lambda f: (grave.index(f.severity), f.where, f.rule))


def tools_changed(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Compiler versions and flags that differ, in words."""
    return ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in sorted({*old, *new})
                     if old.get(k) != new.get(k))


def _device(device: str, old: DeviceFacts, new: DeviceFacts) -> list[Finding]:
    tools = tools_changed(old.toolchain, new.toolchain)
    found = []
    if tools:
        same = sum(old.points[k] == p for k, p in new.points.items() if k in old.points)
        found.append(Finding("info", "compiler", device, f"{tools}: {same} of {len(new.points)} "
                             "configs compile to the same code", "the compiler"))
    for key in sorted({*old.points, *new.points}):
        where = f"{device} {key}"
        if key not in new.points:
            severity = "warn" if key.endswith(" record") else "info"
            found.append(Finding("warn" if severity == "warn" else "info", "gone", where,
                                 "is no longer there", "a preset, an operator or a record changed"))
        elif key not in old.points:
            bad = not new.points[key].legal
            found.append(Finding("warn" if bad else "info", "new", where,
                                 f"is refused: {new.points[key].reason}" if bad else "is new",
                                 "not in the baseline; take it in with --update"))
        else:
            found += compare_points(where, old.points[key], new.points[key], tools)
    was, now = (_share(facts.coverage) for facts in (old, new))
    if now < was:
        found.append(Finding(
            "fail", "coverage", device, f"tuned {old.coverage['tuned']} of "
            f"{old.coverage['shapes']} -> {new.coverage['tuned']} of {new.coverage['shapes']}",
            "records were removed, or are stale: a source or a compiler changed since"))
    return found


def _share(coverage: Mapping[str, int]) -> float:
    return coverage.get("tuned", 0) / max(1, coverage.get("shapes", 0))


def summary(findings: Sequence[Finding], points: int) -> str:
    """One line."""
    counts = {s: sum(f.severity == s for f in findings) for s in ("fail", "warn", "info")}
    return (f"{points} named configs: " + (", ".join(f"{n} {s}" for s, n in counts.items() if n)
                                           or "0 differences"))
