"""`expertile tune report`: what a tuning database says of its tunes, as one HTML file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import ops
from ..ops import has_lowering
from ..ops.source import source_hash
from ..ops.space import Space
from ..targets.base import BuildError, Target
from .db import where
from .options import Db, Op, load_target, short_shape, wanted_ops

if TYPE_CHECKING:
    from ..opt.report import ShapeReport
    from ..tuning_db.key import Key
    from ..tuning_db.record import Record


def report(
    db: Db = None, op: Op = None,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(
        "--png", help="Folder that gets every plot as a PNG file, too.")] = None,
) -> None:
    """Convergence, knob importance, coverage, ties, refusals and a roofline: one file."""
    from ..bench.outputs.tune_page import render
    from ..opt.report import read

    source = where(db)
    rows = _rows(source, op)
    page = render(read(rows, _Spaces()), source, label)
    _write(out, page.html.encode())
    print(f"{out}: {len({r.key.hash for r in rows})} shapes, "
          f"{sum(r.role == 'candidate' for r in rows)} trials")
    if not any(r.role == "candidate" for r in rows):
        print(f"{source} holds records and no trials: convergence, importance and coverage are "
              "left out")
    if png is not None:
        for drawing in page.drawings:
            _write(png / f"{drawing.name}.png", drawing.png())
        print(f"{png}: {len(page.drawings)} plots")


def label(report: ShapeReport, axes: Collection[str] = ()) -> str:
    """A shape in a few words, of these axes when there are any; and a routing that is unusual."""
    shape, routing = report.key.shape, report.key.routing
    said = short_shape({a: v for a, v in shape.items() if a in axes} or shape)
    return said + ("" if routing == "uniform" else f" {routing}")


def _rows(source: str, only: list[str] | None) -> list[Record]:
    """The records to report on; a ValueError in one line when there are none."""
    from ..tuning_db.store import TuningDB

    wanted = wanted_ops(only) if only else None
    with TuningDB(source, read_only=True) as store:
        rows = store.records()
    if not rows:
        raise ValueError(f"{source} holds no records; fill it with: expertile tune --db {source}")
    kept = [r for r in rows if wanted is None or r.key.op in wanted]
    if not kept and wanted is not None:
        raise ValueError(f"{source} has no record of {', '.join(wanted)}; it has "
                         f"{', '.join(sorted({r.key.op for r in rows}))}")
    return kept


class _Spaces:
    """The spaces of keys whose target can be described here and whose code is this release's."""

    def __init__(self) -> None:
        self._targets: dict[str, Target | None] = {}

    def __call__(self, key: Key) -> Space | None:
        target = self._target(key)
        if (target is None or key.op not in ops.names() or not has_lowering(key.op, target.lang)
                or source_hash(key.op, target.lang) != key.source):
            return None
        try:
            return target.space(ops.load(key.op), key.shape)
        except (BuildError, ValueError, KeyError):
            return None

    def _target(self, key: Key) -> Target | None:
        if key.device not in self._targets:
            self._targets[key.device] = _target_of(key)
        return self._targets[key.device]


def _target_of(key: Key) -> Target | None:
    """The target with a key's fingerprint: an arch, on CPUs with its threads ("...-t8")."""
    threads = key.device.rpartition("-t")[2]
    names = (f"{key.arch}:{threads}" if threads.isdigit() else key.arch, key.arch)
    for name in dict.fromkeys(names):
        try:
            target = load_target(name)
        except (ValueError, ImportError):
            continue
        if target.device == key.device:
            return target
    return None


def _write(path: Path, data: bytes) -> None:
    """A file, its folder made; a ValueError that names it when it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as e:
        raise ValueError(f"{path} cannot be written ({e.strerror}); give another path") from e
