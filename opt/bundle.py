"""A bundle: shapes, the configs that were planned for them, and what those compiled to.

Made where the device is not (bundle_plan.py), measured where it is (bundle_run.py). This file is
its manifest; bundle_file.py is the archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..ops.space import Config
from ..ops.spec import Shape
from ..targets.base import Target
from ..tuning_db.key import checked_fields, is_flat
from ..tuning_db.record import EVIDENCE

KIND, FORMAT = "expertile-bundle", 1
# "spills" is legal, but so slow as a rule that it is not worth the device's time.
Status = Literal["ok", "spills", "illegal", "build_error", "timeout", "oom"]
COMPILED = "L2 native object"        # from here on the device has nothing left to compile


class BundleError(ValueError):
    """A bundle that cannot be used; the message says by what rule, and what to do."""


@dataclass(frozen=True)
class Candidate:
    """One config and what compiling it has shown."""

    config: Config
    status: Status
    reason: str                      # why not, with the numbers; "" when it is to be measured
    evidence: str
    modelled_us: float | None = None # for the order of measuring only
    spill_bytes: int = 0
    warnings: tuple[str, ...] = ()
    kernels: tuple[Mapping[str, Any], ...] = ()  # of each launch: grid, registers, opcode hash ...


@dataclass(frozen=True)
class Planned:
    """One operator at one shape; the default config is its first candidate."""

    op: str
    shape: Shape
    source: str                      # hash of the lowering and what it imports
    pool: int                        # valid configs that there were
    candidates: tuple[Candidate, ...]

    @property
    def wanted(self) -> list[Candidate]:
        """What is to be measured: the default, then the best by the model, the rest as found."""
        default, *others = self.candidates
        legal = [c for c in others if c.status == "ok"]
        ordered = sorted(legal, key=lambda c: c.modelled_us or float("inf"))
        return ([default] if default.status in ("ok", "spills") else []) + ordered


@dataclass(frozen=True)
class For:
    """The target that a bundle was compiled for."""

    asked: str                       # as --device said it: what it is called on the device too
    name: str
    lang: str
    arch: str
    device: str
    toolchain: Mapping[str, str]

    @classmethod
    def of(cls, target: Target, asked: str) -> For:
        """A target, and how the user named it."""
        return cls(asked, target.name, target.lang, target.arch, target.device, target.toolchain())


@dataclass(frozen=True)
class Manifest:
    """All of a bundle but its files."""

    made: str                        # UTC, ISO 8601
    tool: str                        # version of this package
    machine: str                     # that compiled
    command: str
    target: For
    seed: int
    budget: Mapping[str, float]      # of each shape
    routing: Mapping[str, Any]       # that the device is to time (ops/routing.py)
    shapes: tuple[Planned, ...]
    files: Mapping[str, str]         # path in the archive -> sha256
    kind: str = KIND
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def from_json(data: Any, where: str) -> Manifest:
    """The manifest in decoded JSON; BundleError when it is another version's, or damaged."""
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise BundleError(f"{where} must be a bundle of `expertile tune plan`; it is none")
    if data.get("format") != FORMAT:
        raise BundleError(
            f"{where} has format {data.get('format')!r}, and this version reads format {FORMAT}: "
            f"plan it again with this version, or run it with the one that made it "
            f"(expertile {data.get('tool')})")
    try:
        return _manifest(data)
    except (ValueError, TypeError, KeyError) as e:
        raise BundleError(f"the manifest of {where} is damaged ({e}); copy the bundle again, or "
                          "plan it again") from e


def _manifest(data: Mapping[str, Any]) -> Manifest:
    have = dict(checked_fields(Manifest, data, "manifest"))
    have["target"] = For(**checked_fields(For, have["target"], "target"))
    have["shapes"] = tuple(_planned(p) for p in _list(have["shapes"], "shapes"))
    made = Manifest(**have)
    _texts(made, "made", "tool", "machine", "command")
    _texts(made.target, "asked", "name", "lang", "arch", "device")
    _require(type(made.seed) is int, "seed must be an integer", made.seed)
    for what in (made.budget, made.files, made.target.toolchain):
        _require(is_flat(what), "budget, files and toolchain must map names to values", what)
    _require(isinstance(made.routing, dict), "routing must be an object", made.routing)
    _require(bool(made.shapes), "there must be a shape", 0)
    return made


def _planned(data: Any) -> Planned:
    have = dict(checked_fields(Planned, data, "shape"))
    have["candidates"] = tuple(_candidate(c) for c in _list(have["candidates"], "candidates"))
    made = Planned(**have)
    _texts(made, "op", "source")
    _require(type(made.pool) is int, "pool must be an integer", made.pool)
    _require(is_flat(made.shape), "a shape must map axes to values", made.shape)
    _require(bool(made.candidates), f"{made.op} must have a candidate", 0)
    return made


def _candidate(data: Any) -> Candidate:
    have = dict(checked_fields(Candidate, data, "candidate"))
    for name in ("warnings", "kernels"):
        have[name] = tuple(_list(have.get(name, []), name))
    made = Candidate(**have)
    _require(made.status in get_args(Status), "status must be a known one", made.status)
    _require(made.evidence in EVIDENCE, "evidence must be a known level", made.evidence)
    _require(is_flat(made.config), "a config must map knobs to values", made.config)
    _require(made.modelled_us is None or is_flat({"us": made.modelled_us}),
             "modelled_us must be a number", made.modelled_us)
    _texts(made, "reason")
    return made


def _list(value: Any, what: str) -> list[Any]:
    _require(isinstance(value, list), f"{what} must be a list", value)
    found: list[Any] = value
    return found


def _texts(what: object, *names: str) -> None:
    for name in names:
        _require(isinstance(getattr(what, name), str), f"{name} must be a text",
                 getattr(what, name))


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {str(value)[:100]!r}")


@dataclass(frozen=True)
class Origin:
    """Where a run's candidates came from; stands in the records' provenance."""

    digest: str                      # of the manifest, which holds those of all files
    manifest: Manifest = field(repr=False)

    def versions(self) -> dict[str, str]:
        """Flat, as a provenance holds it."""
        return {"bundle": f"{self.digest[:16]}, planned {self.manifest.made} by expertile "
                          f"{self.manifest.tool}"}
