"""`expertile collect`: run a program and write the shapes and the routing that its model used."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import settings
from ..ops.routing import from_json
from .options import Json, console, short_shape


def _gather(folder: Path) -> dict[str, Any]:
    from ..collect import merge

    found = merge(sorted(folder.glob("*.json")))
    if not found["shapes"]:
        raise ValueError("no process called an expertile operator, so there is nothing to write; "
                         "does the program import expertile's operators?")
    return found


def _show(found: dict[str, Any], out: Path) -> None:
    table = Table("operator", "shape", "calls", title=f"{len(found['shapes'])} shapes")
    for row in found["shapes"][:20]:
        table.add_row(row["op"], short_shape(row["shape"]), str(row["calls"]))
    console().print(table)
    if routing := found.get("routing"):
        most = routing["counts"][0] * routing["experts"]
        console().print(f"routing {from_json(found, str(out)).name}: {routing['experts']} experts, "
                        f"{routing['layers']} layers, {routing['tokens']} tokens; the heaviest "
                        f"expert has {most:.2f}x its even share")
    console().print(f"tune for it: expertile tune --collected {out}")


def collect(
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    program: Annotated[list[str] | None, typer.Argument(
        help="After --: a program that runs a model on expertile's operators.")] = None,
    merge: Annotated[Path | None, typer.Option(
        "--merge", help="Instead of running a program: gather the folder that EXPERTILE_COLLECT "
                        "named in processes started elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Record which shapes a running model uses and how its tokens spread over experts."""
    from ..collect import write_json

    if (merge is None) == (not program):
        raise ValueError("give either a program after --, as in: expertile collect seen.json -- "
                         "python serve.py, or --merge FOLDER")
    code = 0
    if merge is not None:
        if not merge.is_dir():
            raise ValueError(f"--merge takes a folder, got {str(merge)!r}")
        found = _gather(merge)
    else:
        assert program
        with tempfile.TemporaryDirectory() as folder:
            code = _run(program, folder)
            found = _gather(Path(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _show(found, out)
    if code:
        raise typer.Exit(1)


def _run(program: list[str], folder: str) -> int:
    """The program's exit code; Ctrl-C ends it, and what it saw until then is kept."""
    env = {**os.environ, settings.COLLECT: folder}
    try:
        with subprocess.Popen(program, env=env) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.wait()
                return 0
    except OSError as e:
        raise ValueError(f"{program[0]!r} cannot be run: {e.strerror}") from None
