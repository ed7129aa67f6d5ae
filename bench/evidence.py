"""The README's table of what was run where: generated from a sweep, never typed.

    python -m expertile.bench.evidence sweep [DEVICE ...]   # compile all, write evidence.json
    python -m expertile.bench.evidence readme               # render it into README.md
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import ops, targets
from ..ops.models import preset
from ..opt.check import Checked, check_many
from ..opt.check import kernels_of as kernels

DEVICES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950",
           "ascend910b3", "ascend950pr_9599")
PRESET = "v3"
_WITHOUT_DEVICE = ("cpu", "null", "replay")
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
_HERE = Path(__file__).resolve().parent
SWEEP = _HERE / "evidence.json"
README = _HERE.parent / "README.md"


def sweep(device: str) -> dict[str, Any]:
    """Examine every kernel of the preset on a device; a summary, by operator."""
    target = targets.load(device)
    found = check_many(kernels(preset(PRESET)), target, len(os.sched_getaffinity(0)), _say)
    return {"device": device, "family": target.name, "fingerprint": target.device,
            "toolchain": target.toolchain(), "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "ops": {name: _summary([c for c in found if c.op == name])
                    for name in dict.fromkeys(c.op for c in found)}}


def _say(checked: Checked) -> None:
    print(f"{checked.op}: {'ok' if checked.ok else checked.examined.reason[:150]}", flush=True)


def _summary(found: list[Checked]) -> dict[str, Any]:
    return {"kernels": len(found), "ok": sum(c.ok for c in found),
            "evidence": min(c.examined.evidence for c in found),
            "reasons": sorted({c.examined.reason or "; ".join(c.examined.warnings)
                               for c in found if not c.ok})}


def timed_archs() -> dict[str, int]:
    """Shipped records that were timed on a device, by arch."""
    found = {}
    shipped = files("expertile.tuning_db").joinpath("records")
    for path in shipped.iterdir() if shipped.is_dir() else ():   # empty folders are not in git
        if path.name.endswith(".jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines() if line]
            found[path.name.removesuffix(".jsonl")] = sum(
                r.get("evidence") == "L4 timed" for r in rows)
    return found


def render(sweeps: Mapping[str, Any]) -> str:
    """The table: one row a device."""
    lines = [f"| device | target | kernels of `--preset {PRESET}` with a legal config, no spills "
             "| level | compiled with |", "| --- | --- | --- | --- | --- |"]
    timed = timed_archs()
    for device, found in sorted(sweeps.items(), key=lambda item: DEVICES.index(item[0])):
        by_op = found["ops"].values()
        count, good = sum(o["kernels"] for o in by_op), sum(o["ok"] for o in by_op)
        level = min(o["evidence"] for o in by_op)
        if timed.get(device):
            level = f"L4 timed: {timed[device]} shipped records"
        bad = ", ".join(f"`{name}` {o['ok']}/{o['kernels']}" for name, o in found["ops"].items()
                        if o["ok"] < o["kernels"])
        made = next(f"{name} {found['toolchain'][name]}" for name in ("triton", "ascendnpu-ir")
                    if name in found["toolchain"])
        lines.append(f"| {device} | `{found['family']}` | {good} of {count}"
                     f"{f' (not all: {bad})' if bad else ''} | {level} | {made}, "
                     f"{found['date']} |")
    reached = {found["family"] for found in sweeps.values()}
    others = [n for n in targets.names() if n not in reached and n not in _WITHOUT_DEVICE]
    if others:
        lines.append(f"| the makers' GPUs | {', '.join(f'`{n}`' for n in others)} | none: only the "
                     "maker's own stack compiles; the adapter is proved against a stub | "
                     "L0 described | - |")
    lines.append(f"| this CPU | `cpu` | compiled, checked and timed where it is tuned "
                 f"({len(ops.names())} operators) | L4 timed | TVM, LLVM |")
    return "\n".join(lines)


def readme_with(table: str, text: str) -> str:
    """README.md with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Sweep devices, or render."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["sweep", "readme"])
    parser.add_argument("devices", nargs="*", default=list(DEVICES))
    args = parser.parse_args()
    sweeps = json.loads(SWEEP.read_text()) if SWEEP.exists() else {}
    if args.verb == "sweep":
        for device in args.devices:
            print(f"== {device}", flush=True)
            sweeps[device] = sweep(device)
            SWEEP.write_text(json.dumps(sweeps, indent=1) + "\n")
    README.write_text(readme_with(render(sweeps), README.read_text()))


if __name__ == "__main__":
    main()
