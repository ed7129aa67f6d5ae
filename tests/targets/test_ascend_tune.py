"""A tune for an NPU that is not here: what the compiler refuses is a row with its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("tvm", reason="needs expertile[ascend]")

from expertile import ops
from expertile.ops.space import Config, Space
from expertile.ops.spec import Operator, Shape
from expertile.opt.budget import Budget
from expertile.opt.job import Method
from expertile.opt.tune import tune
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.target import AscendTarget
from expertile.tuning_db.store import TuningDB

SHAPE = {"n": 512, "k": 128, "a_dtype": "float16", "w_dtype": "float16", "out_dtype": "float16",
         "block_n": 128, "block_k": 128, "tokens": 512}
SMALL, LARGE = ({"block_m": m, "block_n": n, "block_k": 64, "double_buffer": True,
                 "workspace_buffers": 2} for m, n in ((32, 64), (256, 256)))


class TwoTiles(AscendTarget):
    """Of all tiles two, one of which fits."""

    def space(self, op: Operator, shape: Shape) -> Space:
        """Both, as the whole space has them."""
        knobs = {axis: tuple(dict.fromkeys((SMALL[axis], LARGE[axis]))) for axis in SMALL}
        return Space(knobs, lambda c: dict(c) in (SMALL, LARGE))


def _row(config: Config, rows: list[dict[str, object]]) -> dict[str, object]:
    row, = (r for r in rows if r["config"] == config)
    return row


def test_a_tile_beyond_l0c_is_a_refusal_with_both_numbers(tmp_path: Path) -> None:
    """256 x 256 sums of 32 bits; 64 columns of float16 operands are no part of it."""
    target = TwoTiles(find("910b3"), "compile", tmp_path)
    op, path = ops.load("gemm_nt"), tmp_path / "x.sqlite"
    outcome, = tune(op, target, [SHAPE], path, Budget(trials=2), method=Method(measure=False))
    record = outcome.record
    assert (outcome.trials, record.kind, record.evidence) == (2, "modelled", "L1 lowered")
    assert dict(record.config) == SMALL and [dict(c) for c in record.ranked] == [SMALL]
    with TuningDB(path, read_only=True) as db:
        rows = [json.loads(r.text) for r in db.records(role="candidate")]
    refused, taken = _row(LARGE, rows), _row(SMALL, rows)
    assert refused["status"] == "illegal" and refused.get("us") is None
    assert refused["error"] == "gemm_nt: L0C overflow: needs 2097152 of 1048576 bits"
    assert taken["status"] == "ok" and taken["kind"] == "modelled"
    assert record.error.startswith("passed: compiled, linked")
