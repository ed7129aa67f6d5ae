"""`expertile doctor`: what this machine can do, per target, with evidence levels."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__, ops, settings
from ..targets.cpu.pools import pools
from . import doctor_attest
from .options import Json, Op, Preset, load_target

_PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "triton", "optuna", "sqlalchemy",
             "safetensors", "tokenizers", "ascendnpu-ir", "llvmlite")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _target_row(name: str, with_limits: bool = True) -> dict[str, Any]:
    try:
        target = load_target(name)
    except (ValueError, OSError, ImportError) as e:
        return {"target": name, "usable": False, "why_not": str(e), "evidence": "L0 described"}
    why = target.available()
    lowered = [op for op in ops.names() if ops.has_lowering(op, target.lang)]
    return {
        "target": name, "arch": target.arch, "device": target.device, "usable": why is None,
        "why_not": why, "evidence": target.evidence(), "toolchain": target.toolchain(),
        "operators": len(lowered), "of": len(ops.names()),
        "limits": {k: {"value": f.value, "unit": f.unit, "source": f.source,
                       "confidence": f.confidence} for k, f in target.limits().items()}
        if why is None and with_limits else {},
    }


def doctor(
    file: Annotated[Path | None, typer.Argument(help="Report to write, or with --check to read."
                                                )] = None,
    attest: Annotated[bool, typer.Option(
        "--attest", help="Compile, run, check and time every operator; a report to send.")] = False,
    check: Annotated[bool, typer.Option(
        "--check", help="With --attest: is a report whole, and does it claim too much.")] = False,
    device: Annotated[str | None, typer.Option(
        "--device", help="What to attest; by default a card that is here, else the CPU.")] = None,
    preset: Preset = None, op: Op = None, as_json: Json = False,
) -> None:
    """What this machine can do, per target, with evidence levels."""
    if not attest and (file or check or device or preset or op):
        raise ValueError("FILE, --check, --device, --preset and --op belong to doctor --attest")
    if check:
        doctor_attest.check(file, as_json)
        return
    if attest:
        others = [{**_target_row(name, with_limits=False), **doctor_attest.why_no_card(name)}
                  for name in doctor_attest.families()]
        doctor_attest.attest(file, device, preset, op, others, as_json)
        return
    found = settings.read()
    report: dict[str, Any] = {
        "expertile": __version__,
        "packages": {p: _version(p) for p in _PACKAGES},
        "targets": [_target_row(name) for name in doctor_attest.families()],
        "threads": pools(os.environ),
        "paths": {"user_db": str(found.user_db), "cache": str(found.cache_dir),
                  "db": found.db, "disabled": found.disabled},
    }
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    table = Table("target", "device", "usable", "evidence", "operators", "measured limits")
    for row in report["targets"]:
        limits = ", ".join(f"{k} {f['value']:.1f} {f['unit']}"
                           for k, f in row.get("limits", {}).items())
        table.add_row(row["target"], row.get("device", "-"),
                      "yes" if row["usable"] else f"no: {row['why_not']}", row["evidence"],
                      f"{row.get('operators', 0)}/{row.get('of', len(ops.names()))}",
                      limits or "-")
    console.print(table)
    console.print("packages: " + ", ".join(f"{k} {v or 'absent'}"
                                           for k, v in report["packages"].items()))
    console.print(f"threads: {report['threads']}")
    console.print(f"paths: {report['paths']}")
