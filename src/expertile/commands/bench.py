"""`expertile bench`: run, compare, gate, report, power, history: is it still as fast?"""

from __future__ import annotations

import typer

from . import bench_gate, bench_history, bench_power, bench_run

app = typer.Typer(
    no_args_is_help=True,
    help="Measure, compare and gate. Exit codes: 0 ok, 1 slower, 2 bad input, "
         "3 ambiguous, 4 wrong results, 5 no comparable baseline.")
app.command("run")(bench_run.run)
app.command("compare")(bench_run.compare)
app.command("gate")(bench_gate.gate)
app.command("report")(bench_run.report)
app.command("power")(bench_power.power)
app.add_typer(bench_history.app, name="history")
