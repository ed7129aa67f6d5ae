"""Reads an attestation that somebody sent: is it whole, and does it claim no more than it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..ops import has_lowering, names
from ..ops import load as load_op
from ..ops.source import source_hash
from ..targets import names as target_names
from .attest import FORMAT, KIND, PACKAGES, digest, packages
from .stats import low

LEVELS = ("L0 described", "L1 lowered", "L2 native object", "L3 executed and checked", "L4 timed")
_TOP = {"kind": str, "format": int, "made": str, "machine": str, "python": str, "packages": dict,
        "target": dict, "operators": list, "others": list, "sha256": str}
_TARGET = ("name", "arch", "device", "toolchain", "why_not", "evidence")
_MAYBE_BOOL, _MAYBE_NUMBER = bool | None, int | float | None
_ROW = {"op": str, "shape": dict, "source": str, "config": dict | None, "answered_by": str,
        "compiles": _MAYBE_BOOL, "runs": _MAYBE_BOOL, "matches": _MAYBE_BOOL,
        "us": _MAYBE_NUMBER, "default_us": _MAYBE_NUMBER, "speedup": _MAYBE_NUMBER,
        "samples": list, "evidence": str, "status": str, "why": str}
_PROVES_NOTHING = ("null", "replay")     # targets without a device
# A card ran something only where what finishes its binaries was there.
_NEEDS = {"ascend": "hivmc"}
_LANGS = ("tvm", "triton", "ascend")


@dataclass(frozen=True)
class Judgement:
    """What is wrong with a document (then it proves nothing), and what is worth knowing of it."""

    errors: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it may be believed as far as it goes."""
        return not self.errors


def judge(document: Any) -> Judgement:
    """Check shape, digest, levels of evidence and versions."""
    errors = list(_shape_errors(document))
    if errors:
        return Judgement(tuple(errors), ())
    if digest(document) != document["sha256"]:
        errors.append("sha256 does not fit the rest: it was changed after it was made, or cut off")
    errors += _target_errors(document["target"])
    for row in document["operators"]:
        errors += [f"{row['op']}: {e}" for e in _row_errors(row, document["target"])]
    return Judgement(tuple(errors), () if errors else tuple(_notes(document)))


def _shape_errors(document: Any) -> Iterator[str]:
    if not isinstance(document, dict):
        yield f"an attestation is a JSON object, got {type(document).__name__}"
        return
    for key, kind in _TOP.items():
        if not isinstance(document.get(key), kind):
            yield f"{key} must be of type {kind.__name__}, got {document.get(key)!r:.60}"
    if document.get("kind") != KIND or document.get("format") != FORMAT:
        yield (f"this reads {KIND} of format {FORMAT}, got {document.get('kind')!r} of format "
               f"{document.get('format')!r}")
    target = document.get("target")
    if isinstance(target, dict):
        yield from (f"target lacks {key}" for key in _TARGET if key not in target)
        yield from (f"target.{key} must be a text, got {target[key]!r:.60}"
                    for key in ("name", "arch", "device", "evidence")
                    if not isinstance(target.get(key, ""), str))
    versions = document.get("packages")
    if isinstance(versions, dict):
        yield from (f"packages does not say the version of {p}" for p in PACKAGES
                    if not isinstance(versions.get(p), str))
    rows = document.get("operators")
    for i, row in enumerate(rows if isinstance(rows, list) else []):
        if not isinstance(row, dict) or set(row) != set(_ROW):
            yield f"operators[{i}] must have exactly {', '.join(_ROW)}"
            continue
        yield from (f"operators[{i}].{key} must be of type {kind}, got {row[key]!r:.60}"
                    for key, kind in _ROW.items() if not isinstance(row[key], kind))


def _target_errors(target: Mapping[str, Any]) -> Iterator[str]:
    if target["name"] not in target_names():
        yield f"there is no target {target['name']!r}"
    if target["evidence"] not in LEVELS:
        yield f"evidence must be one of {', '.join(LEVELS)}, got {target['evidence']!r}"
    if not isinstance(target["toolchain"], dict) or not target["toolchain"]:
        yield "toolchain must name the versions that made the code"


def _row_errors(row: Mapping[str, Any], target: Mapping[str, Any]) -> Iterator[str]:
    if row["op"] not in names():
        yield "there is no such operator"
        return
    missing = [a for a in (*load_op(row["op"]).static, *load_op(row["op"]).dynamic)
               if a not in row["shape"]]
    if missing:
        yield f"its shape lacks {', '.join(missing)}"
    if row["evidence"] not in LEVELS:
        yield f"evidence must be one of {', '.join(LEVELS)}, got {row['evidence']!r}"
        return
    shown, why = _shown(row, target)
    if row["evidence"] > shown:
        yield f"claims {row['evidence']}, shows {shown}: {why}"
    if row["us"] is not None:
        yield from _time_errors(row)


def _shown(row: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[str, str]:
    """The level that a row's own facts support, and what holds it down."""
    if not row["compiles"]:
        return LEVELS[0], "it did not compile"
    most = min(target["evidence"], LEVELS[4])
    if target["name"] in _PROVES_NOTHING:
        return LEVELS[1], f"the target {target['name']} has no device"
    need = _NEEDS.get(target["name"])
    if need and target["toolchain"].get(need, "absent") == "absent":
        return min(most, LEVELS[1]), f"without {need} there is no binary"
    if target["why_not"] is not None:
        return min(most, LEVELS[2]), f"the target could not run: {target['why_not']}"
    if not row["runs"]:
        return min(most, LEVELS[2]), "it did not run"
    if not row["matches"] or not row["samples"]:
        return min(most, LEVELS[3]), "it is not right, or was not timed"
    return most, "the target's own level"


def _time_errors(row: Mapping[str, Any]) -> Iterator[str]:
    samples = row["samples"]
    if not samples or not all(isinstance(s, int | float) and math.isfinite(s) and s > 0
                              for s in samples):
        yield "a time needs samples, all positive"
        return
    if not math.isclose(low(samples), row["us"], rel_tol=1e-4):
        yield f"its time is {row['us']:g} us, its samples say {low(samples):g}"
    if row["answered_by"] == "default" and row["speedup"] != 1.0:
        yield f"the default config is 1.0 times as fast as itself, got {row['speedup']}"
    if row["matches"] is not True:
        yield "a kernel that is not right has no time"


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    here = packages()
    for name, there in document["packages"].items():
        if here.get(name, "absent") != there:
            yield f"{name}: made with {there}, here is {here.get(name, 'absent')}"
    changed = [row["op"] for row in document["operators"]
               if row["source"] and row["source"] not in _sources(row["op"])]
    if changed:
        yield f"kernels differ from this version's: {', '.join(changed)}"
    failed = [f"{row['op']} ({row['status']})" for row in document["operators"]
              if row["status"] not in ("ok", "not run")]
    if failed:
        yield f"did not do well there: {', '.join(failed)}"
    if document["target"]["why_not"] is not None:
        yield f"nothing ran there: {document['target']['why_not']}"


def _sources(op_name: str) -> set[str]:
    return {source_hash(op_name, lang) for lang in _LANGS if has_lowering(op_name, lang)}
