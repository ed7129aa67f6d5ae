"""`expertile collect`: what a running model used, from every process, whole or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from expertile import ops
from expertile.cli import app
from expertile.collect import Collector, merge
from expertile.ops.routing import parse

PROGRAM = """
import torch, expertile as et
w1, w2 = torch.randn(4, 16, 8), torch.randn(4, 8, 8)
for tokens, expert in ((3, 1), (3, 1), (5, 2)):
    ids = torch.full((tokens, 1), expert, dtype=torch.int32)
    et.fused_moe(torch.randn(tokens, 8), w1, w2, torch.ones(tokens, 1), ids)
et.silu_mul(torch.randn(2, 8))
"""


def test_a_programs_calls_and_routing_are_written(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTILE_DISABLE", "1")     # what answers does not matter here
    out = tmp_path / "seen.json"
    done = CliRunner().invoke(app, ["collect", str(out), "--json", "--",
                                    sys.executable, "-c", PROGRAM])
    assert done.exit_code == 0, done.output
    seen = json.loads(out.read_text())
    assert [(row["op"], row["shape"].get("tokens"), row["calls"]) for row in seen["shapes"]] == [
        ("fused_moe", 3, 2), ("fused_moe", 5, 1), ("silu_mul", 2, 1)]
    assert seen["routing"] == {"experts": 4, "layers": 1, "tokens": 11,
                               "counts": [0.545455, 0.454545, 0.0, 0.0]}
    assert parse(str(out)).recorded == (0.545455, 0.454545, 0.0, 0.0)


def test_a_failing_program_leaves_what_it_saw_and_its_failure_shows(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTILE_DISABLE", "1")
    out = tmp_path / "seen.json"
    done = CliRunner().invoke(app, ["collect", str(out), "--", sys.executable, "-c",
                                    PROGRAM + "raise SystemExit(3)"])
    assert done.exit_code == 1 and len(json.loads(out.read_text())["shapes"]) == 3


@pytest.mark.parametrize(("words", "says"), [
    (["no-such-program"], "cannot be run"), ([sys.executable, "-c", "pass"], "no process called"),
    ([], "give either a program")])
def test_misuse_is_one_error_and_writes_nothing(words: list[str], says: str,
                                                tmp_path: Path) -> None:
    out = tmp_path / "seen.json"
    done = CliRunner().invoke(app, ["collect", str(out), "--", *words])
    assert isinstance(done.exception, ValueError) and says in str(done.exception)
    assert not out.exists()


def collected(file: Path, experts: list[int]) -> Path:
    """What a process writes whose tokens all went to these experts, by layer."""
    op = ops.load("fused_moe")
    seen, shape = Collector(file), {**op.odd_shapes[0], "tokens": 10}
    hidden, w1, *rest = op.inputs(shape, 0)
    layers = [w1.clone() for _ in experts]           # alive together: an address names a layer
    for layer, expert in zip(layers, experts, strict=True):
        rest[2] = torch.full_like(rest[2], expert)
        seen(op, shape, (hidden, layer, *rest))
    seen.write()
    return file


def test_layers_with_different_heavy_experts_stay_skewed(tmp_path: Path) -> None:
    files = [collected(tmp_path / "a.json", [0, 3]), collected(tmp_path / "b.json", [2])]
    found = merge(files)
    assert found["routing"]["counts"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert found["routing"]["layers"] == 3 and found["shapes"][0]["calls"] == 3


def test_ids_of_other_ranks_are_not_counted(tmp_path: Path) -> None:
    found = merge([collected(tmp_path / "a.json", [-1, 7])])
    assert "routing" not in found and found["shapes"][0]["calls"] == 2


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="collect again"):
        merge([tmp_path / "a.json"])
