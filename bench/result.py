"""The one result object: what was measured, on what, with every raw sample; JSON in, JSON out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..opt.stats import low

SCHEMA = "expertile-bench/1"
MAX_BYTES = 256 << 20                # of a result file; a larger one is damage or an attack

# "wrong" and "failed": it ran and gave a wrong answer, or did not run; "new": base has no such case
Status = Literal["ok", "wrong", "failed", "new"]
Samples = tuple[tuple[float, ...], ...]      # [round][sample of a block], microseconds


class BadResult(ValueError):
    """A result file that cannot be used; the message says why and what to do."""


class NoBaseline(Exception):
    """There is nothing that may be compared with: exit code 5."""


@dataclass(frozen=True)
class Machine:
    """Where it was measured. `host` is a salted digest: it tells hosts apart and names none."""

    model: str                       # processor, threads, memory, system
    device: str                      # capability fingerprint of the target
    threads: int
    host: str

    def differs(self, other: Machine, any_host: bool = False) -> list[str]:
        """The fields in which two machines are not the same, with both values."""
        names = [n for n in ("model", "device", "threads", "host")
                 if not (any_host and n == "host")]
        return [f"{n}: {getattr(self, n)} / {getattr(other, n)}" for n in names
                if getattr(self, n) != getattr(other, n)]


@dataclass(frozen=True)
class Case:
    """One thing that was timed, on each side in the same rounds."""

    name: str
    group: str                       # the operator, or the file of a user's own case
    status: Status
    samples: Mapping[str, Samples] = field(default_factory=dict)     # by side
    shape: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)    # by side
    answered_by: Mapping[str, str] = field(default_factory=dict)     # by side: default, tuned ...
    error: str = ""
    evidence: str = ""
    floor_us: float | None = None    # what the machine's measured limits allow
    flops: float = 0.0
    bytes: float = 0.0
    inner: int = 1                   # calls of one sample

    def flat(self, side: str) -> list[float]:
        """All samples of a side."""
        return [us for block in self.samples.get(side, ()) for us in block]

    def us(self, side: str) -> float | None:
        """The low quantile of a side's samples."""
        found = self.flat(side)
        return low(found) if found else None

    def percent_of_floor(self, side: str) -> float | None:
        """How much of what the machine allows was reached."""
        us = self.us(side)
        return 100.0 * self.floor_us / us if us and self.floor_us else None


@dataclass(frozen=True)
class Result:
    """One run. Sides: "head" and its twin "head_again"; a gate has "base" and "base_again" too."""

    machine: Machine
    toolchain: Mapping[str, Mapping[str, str]]               # by side
    cases: tuple[Case, ...]
    created: str                     # UTC, ISO 8601
    tool: str
    command: str = ""
    revision: Mapping[str, str] = field(default_factory=dict)        # by side
    limits: Mapping[str, float] = field(default_factory=dict)        # measured on this machine
    settings: Mapping[str, Any] = field(default_factory=dict)
    anchor: Samples = ()             # a constant reference kernel, in the same rounds
    schema: str = SCHEMA

    def case(self, name: str) -> Case | None:
        """A case by name."""
        return next((c for c in self.cases if c.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; every number that a report shows follows from it."""
        return asdict(self)

    def anchor_spread(self) -> float | None:
        """How far the reference kernel moved between the run's halves: 0.03 is 3 %."""
        half = len(self.anchor) // 2
        if half < 4:
            return None
        first, second = (low([us for block in part for us in block])
                         for part in (self.anchor[:half], self.anchor[half:]))
        return abs(second / first - 1.0)


def from_json(data: Any, where: str) -> Result:
    """The result in decoded JSON; BadResult names what is wrong with it."""
    try:
        if data.get("schema") != SCHEMA:
            raise BadResult(f"{where} must hold schema {SCHEMA!r}, got {data.get('schema')!r}; "
                            "make it with: expertile bench run --out FILE")
        cases = tuple(Case(**{**c, "samples": _samples(c["samples"])}) for c in data["cases"])
        return Result(**{**data, "machine": Machine(**data["machine"]), "cases": cases,
                         "anchor": _blocks(data["anchor"])})
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        if isinstance(e, BadResult):
            raise
        raise BadResult(f"{where} is damaged ({type(e).__name__}: {e}); measure again with: "
                        "expertile bench run --out FILE") from e


def _blocks(data: Sequence[Sequence[float]]) -> Samples:
    found = tuple(tuple(float(us) for us in block) for block in data)
    if any(not us > 0 or us == float("inf") for block in found for us in block):
        raise ValueError("samples must be positive and finite")
    return found


def _samples(data: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Samples]:
    return {side: _blocks(blocks) for side, blocks in data.items()}


def read(path: Path) -> Result:
    """A result file."""
    if not path.exists():
        raise NoBaseline(f"{path} does not exist; make it with: expertile bench run --out {path}")
    if path.stat().st_size > MAX_BYTES:
        raise BadResult(f"{path} must be smaller than {MAX_BYTES >> 20} MiB to be a result")
    try:
        return from_json(json.loads(path.read_text()), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise BadResult(f"{path} is damaged (no JSON: {e}); measure again with: expertile bench "
                        f"run --out {path}") from e


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a full disk leaves what stood there."""
    if path.exists() and not path.is_file():     # /dev/stdout, a pipe: never to be replaced
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as f:
        try:
            f.write(text)
            f.flush()
        except OSError:
            os.unlink(f.name)
            raise
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def write(path: Path, result: Result) -> None:
    """Store a result."""
    write_text(path, json.dumps(result.to_json(), separators=(",", ":")) + "\n")
