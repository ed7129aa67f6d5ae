"""GEMMs, routing and the fused MoE for Ascend: as MLIR on the CPU, and compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expertile import ops
from expertile.ops.models import Load, preset

from .ascend_cases import C220, C310, drawn, examined, first_mismatch, need_tools, v3

need_tools()

GEMMS = ("gemm_nt", "m_grouped_gemm_nt_masked", "m_grouped_gemm_nt_contiguous")


@pytest.mark.parametrize("name", GEMMS)
def test_values(name: str) -> None:
    shapes = ops.load(name).odd_shapes
    for device, shape in ((C220, shapes[0]), (C310, shapes[1]), (C220, shapes[2])):
        assert (why := first_mismatch(device, name, shape)) is None, why


@pytest.mark.parametrize("device", (C220, C310))
def test_quantised_operands(device: str) -> None:
    shape = next(s for s in ops.load("gemm_nt").odd_shapes if s["a_dtype"] == "float8_e4m3fn")
    assert (why := first_mismatch(device, "gemm_nt", shape)) is None, why


@pytest.mark.parametrize(("device", "name", "at"), (
    (C220, "gemm_nt", 7), (C310, "gemm_nt", 8), (C220, "gemm_nt", 9),
    (C310, "m_grouped_gemm_nt_contiguous", 5), (C220, "m_grouped_gemm_nt_masked", 4)))
def test_int8_operands(device: str, name: str, at: int) -> None:
    """By blocks, by channels, weights only, two operands whose sums are int32."""
    shape = ops.load(name).odd_shapes[at]
    assert shape["w_dtype"] == "int8"
    assert (why := first_mismatch(device, name, shape)) is None, why


@pytest.mark.parametrize(("device", "name", "at"), (
    (C220, "gemm_nt", 10), (C310, "gemm_nt", 11), (C220, "gemm_nt", 11), (C220, "gemm_nt", 12),
    (C310, "m_grouped_gemm_nt_contiguous", 6), (C220, "m_grouped_gemm_nt_contiguous", 7),
    (C220, "m_grouped_gemm_nt_masked", 6), (C310, "m_grouped_gemm_nt_masked", 7)))
def test_float16_operands(device: str, name: str, at: int) -> None:
    """Both, beside e4m3 and beside int8; sums beyond 65504 are infinite."""
    shape = ops.load(name).odd_shapes[at]
    assert shape["a_dtype"] == "float16"
    assert (why := first_mismatch(device, name, shape)) is None, why


@pytest.mark.parametrize("device", (C220, C310))
@pytest.mark.parametrize("w", ("float16", "float8_e4m3fn"))
def test_float16_is_multiplied_as_float16(device: str, w: str, tmp_path: Path) -> None:
    model = replace(preset("v3"), act_dtype="float16", weight_dtype=w)
    shape = next(s for s in ops.load("gemm_nt").shapes(model, Load(tokens=(64,)))
                 if s["n"] == 1536)
    seen = examined(device, "gemm_nt", shape, tmp_path)
    assert seen.legal and not seen.warnings, seen.reason
    assert "mma_tile_half_to_float_tb" in seen.kernels[0]["calls"]


@pytest.mark.parametrize("device", (C220, C310))
def test_two_int8_operands_meet_in_the_cube(device: str, tmp_path: Path) -> None:
    op = ops.load("gemm_nt")
    model = replace(preset("v3"), weight_dtype="int8")
    shape = next(s for s in op.shapes(model, Load(tokens=(64,))) if s["n"] == 1536)
    for a in ("int8", "bfloat16"):
        seen = examined(device, "gemm_nt", {**shape, "a_dtype": a}, tmp_path)
        assert seen.legal and not seen.warnings, seen.reason
        cube = {"int8": "mma_tile_int8_t_to_int32_t_tb",
                "bfloat16": "mma_tile_bfloat16_t_to_float_tb"}[a]
        assert cube in seen.kernels[0]["calls"]


@pytest.mark.parametrize("name", ("gemm_nt", "m_grouped_gemm_nt_contiguous"))
def test_configs_agree(name: str) -> None:
    shape = ops.load(name).odd_shapes[1]
    for config in drawn(C220, name, shape, 2):
        assert (why := first_mismatch(C220, name, shape, config)) is None, why


def test_fused_moe() -> None:
    shapes = ops.load("fused_moe").odd_shapes
    w8a8 = next(s for s in shapes if s["w8a8"])
    int8 = shapes[-1]
    assert int8["w_dtype"] == "int8" and int8["w8a8"]
    # the second has ragged scale blocks
    for device, shape in ((C310, shapes[1]), (C220, w8a8), (C220, int8)):
        assert (why := first_mismatch(device, "fused_moe", shape)) is None, why


def test_pieces() -> None:
    from expertile.ops._ascend.grouped import pieces_of_experts, pieces_of_runs

    pieces, lengths = pieces_of_experts(torch.tensor([3, 0, 9, 70_000, -1]), 9, 4)
    assert lengths.tolist() == [1, 0, 3, 3, 0]
    assert pieces[2].tolist() == [[18, 4, 2], [22, 4, 2], [26, 1, 2]]
    runs = torch.tensor([0, 0, -1, 1, 1, 1, 7, 0, 0])
    pieces, lengths = pieces_of_runs(runs, 5, 4)
    assert lengths.tolist() == [2, 2, 1]
    assert pieces[0, :2].tolist() == [[0, 2, 0], [3, 1, 1]]
    assert pieces[1, :2].tolist() == [[4, 2, 1], [7, 1, 0]]
    assert pieces[2, :1].tolist() == [[8, 1, 0]]


@pytest.mark.parametrize(("device", "name"), [
    *((d, n) for d in (C220, C310) for n in (*GEMMS, "moe_route", "fused_moe"))])
def test_the_compiler_takes_the_default(device: str, name: str, tmp_path: Path) -> None:
    seen = examined(device, name, v3(name, last=True), tmp_path)
    assert seen.legal and not seen.warnings, seen.reason
    assert all(k["l1_bytes"] <= 512 << 10 for k in seen.kernels)


def test_a_tile_beyond_the_accumulators_is_refused_with_numbers(tmp_path: Path) -> None:
    shape = {**v3("gemm_nt", last=True), "tokens": 2048}
    big = {"block_m": 256, "block_n": 256, "block_k": 64}
    seen = examined(C220, "gemm_nt", shape, tmp_path, big)
    assert not seen.legal
    assert seen.reason == "gemm_nt: L0C overflow: needs 2097152 of 1048576 bits"
    assert examined(C310, "gemm_nt", shape, tmp_path, big).legal


def test_two_compiles_give_one_hash(tmp_path: Path) -> None:
    shape = v3("gemm_nt")
    first, second = (examined(C220, "gemm_nt", shape, tmp_path / folder) for folder in "ab")
    assert first.kernels[0]["sha256"] == second.kernels[0]["sha256"]


@pytest.mark.parametrize(("device", "at"), ((C220, 1), (C310, 4)))
def test_routing(device: str, at: int) -> None:
    """Groups of which some stay, softmax and sigmoid, with ties."""
    shape = ops.load("moe_route").odd_shapes[at]
    assert (why := first_mismatch(device, "moe_route", shape)) is None, why
