"""`tune` by routing, by what was collected, and by another search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expertile.cli import app
from expertile.ops.routing import recorded
from expertile.tuning_db.store import TuningDB


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def collected(path: Path) -> Path:
    shape = {"e": 4, "inter": 16, "hidden": 32, "top_k": 2, "w_dtype": "float32",
             "dtype": "float32", "block_n": 128, "block_k": 128, "w8a8": False, "tokens": 6}
    silu = {"h": 32, "dtype": "float32", "tokens": 6}
    path.write_text(json.dumps({
        "format": "expertile collected 1", "layers": [],
        "shapes": [{"op": "fused_moe", "shape": shape, "calls": 9},
                   {"op": "silu_mul", "shape": silu, "calls": 2}],
        "routing": {"experts": 4, "layers": 1, "tokens": 9, "counts": [5, 3, 1, 0]}}))
    return path


def test_collected_shapes_are_tuned_for_their_routing(tmp_path: Path) -> None:
    """A record says for which routing it holds; operators without experts have none."""
    seen, db = collected(tmp_path / "seen.json"), tmp_path / "x.sqlite"
    done = invoke("tune", "--collected", seen, "--device", "null", "--trials", 3, "--db", db,
                  "--sampler", "random", "--json")
    assert done.exit_code == 0, done.output
    assert [r["op"] for r in json.loads(done.stdout)["records"]] == ["fused_moe", "silu_mul"]
    with TuningDB(db, read_only=True) as opened:
        routings = {r.key.op: r.key.routing for r in opened.records(role="winner")}
    assert routings == {"fused_moe": recorded([5, 3, 1, 0]).name, "silu_mul": "uniform"}


@pytest.mark.parametrize(("words", "says"), [
    (("--collected", "{seen}", "--preset", "tiny"), "give one of"),
    (("--collected", "{other}",), "is none"),
    (("--collected", "{seen}", "--op", "mla_decode"), "no shape of mla_decode"),
    (("--preset", "tiny", "--routing", "skewed"), "zipf-S"),
    (("--preset", "tiny", "--storage", "sqlite:///x.db"), "SQLite is for one process")])
def test_misuse_is_one_error(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[]")
    paths = {"seen": collected(tmp_path / "seen.json"), "other": other}
    done = invoke("tune", "--device", "null", *(w.format(**paths) for w in words))
    assert isinstance(done.exception, ValueError) and says in str(done.exception)
