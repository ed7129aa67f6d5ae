"""The legality model errs one way: it says "fits" only of what the compiler takes."""

from __future__ import annotations

import pytest

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("tvm", reason="needs expertile[ascend]")

from expertile import ops, targets
from expertile.bench import ascend_tiles
from expertile.ops.models import Load, preset
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.emit import emit
from expertile.targets.ascend.legality import fit, live_bytes
from tests.targets.data.ascend import kernels

DEVICE = find("910b3")
NAMES = ["gemm_nt", "m_grouped_gemm_nt_masked", "silu_mul", "per_token_group_quant_fp8"]


def test_never_says_fits_where_the_compiler_refuses() -> None:
    tiles = list(ascend_tiles.tiles("910b3", NAMES, 24, seed=3))
    assert all(t.accepted for t in tiles if ascend_tiles.said_fits(t))
    assert {t.accepted for t in tiles} == {True, False}
    sure = sum(ascend_tiles.said_fits(t) for t in tiles)
    assert sure >= 0.8 * sum(t.accepted for t in tiles)          # and it is no mere coward


def test_a_products_tiles_are_counted() -> None:
    live = live_bytes(kernels.gemm(512, 1024, 128, 256, 64))
    assert live["cc"] == 128 * 256 * 4
    assert live["cbuf"] == (128 + 256) * 64 * 2
    verdict = fit(kernels.gemm(512, 512, 256, 256, 64), DEVICE)
    assert not verdict.fits and verdict.reason == "cc may overflow: up to 2097152 of 1048576 bits"
    assert fit(kernels.gemm(512, 512, 256, 256, 64), find("950pr_9599")).fits
    assert fit(kernels.gemm(512, 1024, 128, 256, 64), DEVICE).reason == ""


def fits(op_name: str, shape: dict[str, object], config: dict[str, object]) -> bool:
    op, target = ops.load(op_name), targets.load("ascend910b3")
    full = {**next(s for s in op.shapes(preset("v3"), Load()) if s.items() >= shape.items())}
    launch = target.launches(op, full, {**target.space(op, full).default(), **config})[0]
    return fit(emit(launch.program, "device").text, DEVICE).fits


def test_rows_that_are_gathered_for_a_product_stand_in_ub_too() -> None:
    """256 cached rows: refused with 2234368 of 1572864 bits."""
    cache: dict[str, object] = {"kv_dtype": "bfloat16"}
    assert fits("mla_decode", cache, {"block_h": 16, "block_n": 64})
    assert not fits("mla_decode", cache, {"block_h": 16, "block_n": 256})


def test_what_meets_elements_that_stand_apart_stands_apart() -> None:
    """Pairs of a rotation are fetched one by one: 16 rows were refused, 1966080 of 1572864 bits."""
    cache: dict[str, object] = {"cache": "bfloat16"}
    assert fits("mla_kv_append", cache, {"rows": 8})
    assert not fits("mla_kv_append", cache, {"rows": 16})
