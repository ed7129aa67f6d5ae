"""`expertile tune run`: measure on the device what `tune plan` compiled elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import settings
from .command_line import command_line
from .db import where
from .options import Db, Json, console, load_target
from .progress import TuneProgress
from .tune import outcome_table, parse_budget
from .tune_plan import bundle_json, bundle_table

if TYPE_CHECKING:
    from ..opt.bundle_file import Bundle
    from ..targets.base import Target


def _device(bundle: Bundle, named: str | None) -> str:
    """--device, else what the bundle was planned for, by the name that it has where it is."""
    if named is not None:
        return named
    target = bundle.manifest.target
    if target.name == "replay":
        raise ValueError(f"{bundle.path.name} was planned on a landscape; name its file with "
                         "--device replay:FILE")
    return "npu:0" if target.name == "ascend" else target.asked


def run(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `tune plan` wrote.")],
    device: Annotated[str | None, typer.Option(
        "--device", help="The device to measure on; by default what the bundle was planned for, "
                         "which must be here.")] = None,
    budget: Annotated[str | None, typer.Option(
        "--budget", help="Time for all shapes together, the best by the model first; by default "
                         "all candidates are measured.")] = None,
    db: Db = None,
    recompile: Annotated[bool, typer.Option(
        "--recompile", help="Use the bundle's configs only, and compile them here.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Say what the bundle holds; measure nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Check and time a bundle's candidates; nothing is compiled unless it has to be.

    A bundle holds machine code: run those of people whose programs you would run, or --recompile.
    """
    from ..opt.bundle import BundleError
    from ..opt.bundle_file import read
    from ..opt.bundle_run import run_bundle, why_not
    from ..tuning_db.store import TuningDB

    bundle = read(file)
    if dry_run:
        if as_json:
            print(json.dumps(bundle_json(bundle), indent=2))
        else:
            console().print(bundle_table(bundle))
        return
    seconds = None if budget is None else parse_budget(budget, None).seconds
    name, to = _device(bundle, device), where(db)

    def load(folder: Path | None) -> Target:
        return load_target(name, folder)

    if why := why_not(bundle, load(None), recompile):    # before a database is made
        raise BundleError(why)
    with TuningDB(to) as store, TuneProgress(Console(stderr=True)) as progress:
        ran = run_bundle(bundle, load, settings.read().cache_dir, store, seconds, recompile,
                         progress, command_line())
    if as_json:
        print(json.dumps({
            "bundle": str(file), "digest": bundle.origin.digest, "db": to,
            "device": bundle.manifest.target.device, "compiled": ran.compiled,
            "records": [o.to_json() for o in ran.outcomes]}, indent=2))
    else:
        console().print(outcome_table(ran.outcomes))
        note = "" if ran.compiled is None else f"; {ran.compiled} kernels were compiled here"
        console().print(f"records are in {to}{note}")
    if any(o.record.decision is None for o in ran.outcomes):
        raise typer.Exit(1)          # a default config that is wrong or does not run
