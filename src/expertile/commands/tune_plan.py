"""`expertile tune plan`: compile and judge candidates for a device that is not here."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import settings
from .command_line import command_line
from .db import where
from .grouped import grouped
from .options import Db, Device, Json, Op, console, load_target, short_shape
from .progress import TuneProgress
from .shapes import Sizes
from .tune import parse_budget
from .tune_method import Collected, RoutingOption, SamplerOption, chosen_routing, work_of

if TYPE_CHECKING:
    from ..opt.bundle_file import Bundle

Out = Annotated[Path, typer.Option("--out", help="The bundle to write: one file.")]


def bundle_table(bundle: Bundle) -> Table:
    """operator x shape: how many candidates are to be measured, and what spoke against others."""
    from ..opt.bundle_run import summary

    m = bundle.manifest
    table = Table("operator", "shape", "configs", "compiled", "to measure", "refused",
                  title=f"{bundle.path.name}: {m.target.arch} ({m.target.device}), planned "
                        f"{m.made} by expertile {m.tool}")
    for planned, counts in summary(bundle):
        refused = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "ok")
        table.add_row(planned.op, short_shape(planned.shape), str(planned.pool),
                      str(len(planned.candidates)), str(len(planned.wanted)), refused or "-")
    return table


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """The same as plain data."""
    from ..opt.bundle_run import summary

    m = bundle.manifest
    return {"bundle": str(bundle.path), "digest": bundle.origin.digest, "made": m.made,
            "expertile": m.tool, "arch": m.target.arch, "device": m.target.device,
            "toolchain": dict(m.target.toolchain), "files": len(m.files),
            "bytes": bundle.path.stat().st_size,
            "shapes": [{"op": p.op, "shape": dict(p.shape), "configs": p.pool,
                        "measure": len(p.wanted), "candidates": counts,
                        "refused": [{"config": dict(c.config), "status": c.status,
                                     "reason": c.reason}
                                    for c in p.candidates if c.status != "ok"]}
                       for p, counts in summary(bundle)]}


def _may_replace(out: Path) -> None:
    """Only another bundle is overwritten."""
    from ..opt.bundle_file import read

    if not out.parent.is_dir():
        raise ValueError(f"--out must name a file in a folder that exists, got {out}")
    if out.exists():
        try:
            read(out)
        except ValueError:
            raise ValueError(f"{out} exists and is no bundle; give another --out") from None


@grouped
def plan(
    sizes: Sizes, out: Out, device: Device = "cpu", op: Op = None,
    budget: Annotated[str | None, typer.Option(
        "--budget", help="Time to compile, for all shapes together: 10m, 2h.")] = None,
    trials: Annotated[int | None, typer.Option(
        "--trials", help="Configs to compile for each shape (20 when neither is given).")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of inputs and search.")] = 0,
    sampler: SamplerOption = "auto", routing: RoutingOption = None, collected: Collected = None,
    db: Db = None, as_json: Json = False,
) -> None:
    """Compile a tune's candidates for a device that is not here, into a bundle.

    Records in the database only give configs to begin with. The same command goes on where a
    killed one stopped. `expertile tune run BUNDLE` on the device checks and times.
    """
    from ..opt.bundle_file import read
    from ..opt.bundle_plan import Plan, plan_bundle
    from ..tuning_db.store import TuningDB

    limit = parse_budget(budget, trials)
    _may_replace(out)
    work, seen = work_of(collected, sizes, device, op)
    with TuningDB(where(db)) as store, TuneProgress(Console(stderr=True)) as progress:
        plan_bundle(
            Plan([(o, s) for o, shapes in work for s in shapes], device, limit, seed, sampler,
                 chosen_routing(routing, seen), command_line()),
            partial(load_target, device), store, settings.read().cache_dir / "plans", out,
            progress)
    bundle = read(out)
    if as_json:
        print(json.dumps(bundle_json(bundle), indent=2))
        return
    console().print(bundle_table(bundle))
    console().print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB; measure it on the device with: "
                    f"expertile tune run {out.name}")
