"""`expertile check`: a device without the hardware, from a clean cache and from a full one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.models import TINY_LOAD, preset
from expertile.opt import jobs
from expertile.opt.check import check_shape
from expertile.opt.session import Site
from expertile.targets import examination

from .test_cli import expertile, refused

OP = ops.load("silu_mul")
SHAPE = OP.shapes(preset("tiny"), TINY_LOAD)[0]


def checked(cache: Path, *args: str) -> dict[str, Any]:
    """The command's JSON."""
    done = expertile("check", "--preset", "tiny", "--op", "silu_mul,moe_route", *args, "--json",
                     env={"XDG_CACHE_HOME": str(cache)})
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("device", "arch"), [("sm_90", "sm_90"), ("h20", "sm_90"),
                                              ("gfx942", "gfx942")])
def test_a_device_that_is_not_here_is_compiled_for(tmp_path: Path, device: str, arch: str) -> None:
    found = checked(tmp_path, "--device", device)
    assert found["arch"] == arch and found["evidence"] == "L2 native object"
    assert {row["op"] for row in found["checked"]} == {"silu_mul", "moe_route"}
    for row in found["checked"]:
        assert row["legal"] and not row["spill_bytes"] and row["evidence"] == "L2 native object"
        kernel = row["kernels"][0]
        assert kernel["registers"] > 0 and len(kernel["opcode_hash"]) == 16
        assert kernel["grid"][0] > 0 and kernel["fill"]["blocks_per_sm"] >= 1


def test_a_second_check_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = targets.load("sm_86", cache_dir=tmp_path)
    first = check_shape(OP, target, SHAPE)
    monkeypatch.setattr(examination, "in_child", lambda *a, **k: pytest.fail("compiled again"))
    assert check_shape(OP, target, SHAPE) == first and first.ok


def test_a_device_without_a_lowering_says_so() -> None:
    found = check_shape(OP, targets.load("null"), SHAPE)
    assert not found.ok and "silu_mul has no null lowering" in found.examined.reason


def test_the_tuners_build_refuses_what_the_device_does_not_have(tmp_path: Path) -> None:
    """The fp8 GEMM tile of many shipped configs needs 147456 bytes; sm_120 has 101376."""
    target = targets.load("sm_120", cache_dir=tmp_path)
    gemm = ops.load("gemm_nt")
    shape = {"n": 4096, "k": 7168, "a_dtype": "bfloat16", "w_dtype": "bfloat16",
             "out_dtype": "bfloat16", "block_n": 128, "block_k": 128, "tokens": 4096}
    big = max(targets.load("sm_90").space(gemm, shape), key=lambda c: (
        int(c["block_m"]) * int(c["block_n"]) * int(c["block_k"]), int(c["stages"])))
    site = Site(target.recipe(), gemm.name, shape, 0).to_json()
    answer = jobs.build(site, dict(big))
    assert answer["status"] == "illegal", answer
    ok = jobs.build(site, dict(target.space(gemm, shape).default()))
    assert ok["status"] == "ok" and ok["modelled_us"] > 0, ok


def test_unknown_devices_are_refused() -> None:
    refused("check", "--device", "sm_99", "--preset", "tiny", says="sm_99")
    refused("tune", "--device", "sm_90", "--preset", "tiny", says="can only be compiled")
