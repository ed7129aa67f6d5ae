"""`expertile tune landscape`: an exhaustive tune as a file on which any search can be played."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Annotated

import typer

from .db import where
from .options import Db, Op, short_shape, wanted_ops

_PACKED = 100_000                    # bytes above which a file is written with gzip


def landscape(
    out: Annotated[Path, typer.Argument(help="Folder that gets a file for each shape.")],
    db: Db = None, op: Op = None,
) -> None:
    """Write a landscape of each shape that was tuned exhaustively (--sampler exhaustive)."""
    from ..opt.replay_record import landscape_of, text_of
    from ..tuning_db.store import TuningDB

    source, wanted = where(db), wanted_ops(op)
    with TuningDB(source, read_only=True) as store:
        rows = [r for r in store.records() if r.key.op in wanted]
    if not rows:
        raise ValueError(f"{source} has no record of {', '.join(wanted)}; make one with: "
                         "expertile tune --sampler exhaustive --trials 1000")
    out.mkdir(parents=True, exist_ok=True)
    written, refused = 0, ""
    for key in dict.fromkeys(r.key.hash for r in rows):
        try:
            made = landscape_of([r for r in rows if r.key.hash == key])
        except ValueError as e:      # one shape of several that has not been finished
            refused = str(e)
            print(f"left out: {e}", file=sys.stderr)
            continue
        written += 1
        text = text_of(made).encode()
        shape = short_shape(made["shape"]).replace(" ", "-").replace("=", "")
        path = out / f"{made['op']}-{shape}.json"
        if len(text) > _PACKED:
            path = path.with_name(f"{path.name}.gz")
            text = gzip.compress(text, mtime=0)
        path.write_bytes(text)
        print(f"{path}: {len(made['entries'])} configs")
    if not written:
        raise ValueError(f"nothing was written: {refused}")
