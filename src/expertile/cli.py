"""The command line: one verb a file in `commands/`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import __version__
from .commands import (
    bench,
    check,
    collect,
    db,
    demo,
    doctor,
    explain,
    run,
    tune,
    tune_landscape,
    tune_plan,
    tune_replay,
    tune_report,
    tune_run,
)

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Compile and tune the operators of MoE/MLA models; one database says which record "
         "answered and why. Exit codes: 0 done, 1 a check failed, 2 bad input.")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback",
                                            help="Show where an error came from.")] = False,
) -> None:
    """Options of every command."""


tuner = typer.Typer(invoke_without_command=True)
tuner.callback()(tune.tune)
tuner.command("plan")(tune_plan.plan)
tuner.command("run")(tune_run.run)
tuner.command("replay")(tune_replay.replay)
tuner.command("report")(tune_report.report)
tuner.command("landscape")(tune_landscape.landscape)
app.command("doctor")(doctor.doctor)
app.add_typer(tuner, name="tune")
app.command("check")(check.check)
app.command("collect")(collect.collect)
app.command("explain")(explain.explain)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.add_typer(db.app, name="db")
app.add_typer(bench.app, name="bench")
