"""What a measurement is valid for, and how far one key stands from another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..ops.routing import UNIFORM
from ..ops.source import source_hash
from ..ops.spec import Operator, Shape, Value

if TYPE_CHECKING:
    from ..targets.base import Target

# Nearest first. The first three are served; the rest only seed a search and stand in `explain`.
Tier = Literal["exact", "patch", "capabilities", "minor", "family", "stale", "none"]
TIERS: tuple[Tier, ...] = ("exact", "patch", "capabilities", "minor", "family", "stale", "none")
SERVED: tuple[Tier, ...] = TIERS[:3]

Difference = tuple[str, Value | None, Value | None]  # field, the record's value, the wanted one

_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Key:
    """Everything that changes which config is best."""

    op: str
    static: Mapping[str, Value]      # axes that select a kernel
    dynamic: Mapping[str, Value]     # axes that select a bucket
    routing: str                     # how tokens were spread over experts (ops/routing.py)
    device: str                      # capability fingerprint, not a marketing name
    arch: str
    source: str                      # hash of the operator's definition and lowering
    toolchain: Mapping[str, str]     # versions and flags that change the generated code

    def __post_init__(self) -> None:
        for name in ("op", "routing", "device", "arch", "source"):
            is_text = isinstance(getattr(self, name), str)
            _require(is_text, f"key.{name} must be a string", self, name)
        for name in ("static", "dynamic", "toolchain"):
            mapping = getattr(self, name)
            _require(is_flat(mapping), f"key.{name} must map names to plain values", self, name)
        texts = all(isinstance(v, str) for v in self.toolchain.values())
        _require(texts, "key.toolchain must hold strings", self, "toolchain")

    @cached_property
    def text(self) -> str:
        """The canonical JSON text: the key's identity."""
        return canonical(asdict(self))

    @cached_property
    def hash(self) -> str:
        """A short digest of the text, for columns and indices."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    @property
    def shape(self) -> dict[str, Value]:
        """All axes."""
        return {**self.static, **self.dynamic}

    @classmethod
    def from_json(cls, data: object) -> Key:
        """The key in decoded JSON; ValueError names what is unknown, missing or of a wrong type."""
        return cls(**checked_fields(cls, data, "key"))


def canonical(data: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, finite numbers."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _require(holds: bool, rule: str, key: Key, name: str) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {getattr(key, name)!r}")


def is_flat(mapping: object) -> bool:
    """Whether this is a mapping of names to finite plain values."""
    return isinstance(mapping, Mapping) and all(
        isinstance(k, str) and isinstance(v, int | float | str) and v == v
        for k, v in mapping.items())


def checked_fields(cls: type[Any], data: object, what: str) -> dict[str, Any]:
    """`data` when it has exactly the fields of a dataclass, optional ones aside."""
    if not isinstance(data, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(data) - set(known)):
        raise ValueError(f"{what} has unknown fields {unknown}; known are {sorted(known)}")
    if missing := sorted(n for n, f in known.items() if n not in data and _is_required(f)):
        raise ValueError(f"{what} must have the fields {missing}")
    return data


def _is_required(f: Any) -> bool:
    from dataclasses import MISSING

    return f.default is MISSING and f.default_factory is MISSING


def key_of(op: Operator, target: Target, shape: Shape, routing: str = UNIFORM) -> Key:
    """The key under which a shape is tuned and looked up on a target.

    `routing` is that of the model; operators without experts have no use for it.
    """
    return Key(op.name, op.static_of(shape), op.dynamic_of(shape),
               routing if op.is_routed else UNIFORM, target.device,
               target.arch, source_hash(op.name, target.lang), target.toolchain())


def differences(record: Key, wanted: Key) -> tuple[Difference, ...]:
    """Every field of two keys that is not the same; nested ones with a dot."""
    found: list[Difference] = []
    for name in ("op", "routing", "device", "arch", "source"):
        if getattr(record, name) != getattr(wanted, name):
            found.append((name, getattr(record, name), getattr(wanted, name)))
    for name in ("static", "dynamic", "toolchain"):
        have, want = getattr(record, name), getattr(wanted, name)
        found += [(f"{name}.{k}", have.get(k), want.get(k))
                  for k in sorted({*have, *want}) if have.get(k) != want.get(k)]
    return tuple(found)


def tier_of(record: Key, wanted: Key, aliases: tuple[str, ...] = ()) -> Tier:
    """How far a record's surroundings are from the wanted ones, sizes aside."""
    if record.op != wanted.op or record.static != wanted.static or record.arch != wanted.arch:
        return "none"
    if record.source != wanted.source:
        return "stale"
    same_routing = record.routing == wanted.routing
    if not same_routing and record.routing != UNIFORM:   # tuned for another model's load
        return "family"
    same_device = record.device == wanted.device
    if not same_device and record.device not in aliases:
        return "family"
    tools = max((_version_step(record.toolchain.get(k), wanted.toolchain.get(k))
                 for k in {*record.toolchain, *wanted.toolchain}), default=0)
    if tools >= 2:
        return "minor" if tools == 2 else "family"
    if not same_device or not same_routing:
        return "capabilities"
    return "exact" if tools == 0 else "patch"


def _version_step(a: str | None, b: str | None) -> int:
    """0 same, 1 another patch version, 2 another minor version, 3 anything else."""
    if a == b:
        return 0
    left, right = (_VERSION.match(v or "") for v in (a, b))
    if left is None or right is None or left[1] != right[1]:
        return 3
    return 1 if left[2] == right[2] else 2
