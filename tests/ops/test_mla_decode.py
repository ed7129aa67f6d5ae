"""MLA decode on the CPU: every case of odd shapes, with sampled configs, and the fp8 cache."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch

from expertile import ops, targets
from expertile.ops.mla_decode import fp8_row_bytes, pack_fp8, unpack_fp8
from expertile.ops.models import PRESETS, TINY_LOAD
from expertile.ops.numerics import mismatch, mismatches
from expertile.ops.space import Config
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from tests.conformance import check, check_config, run_once

OP = ops.load("mla_decode")
LOWERING = ops.lowering("mla_decode", "tvm")


def sampled(target: Target, shape: Shape, count: int) -> list[Config]:
    """Random configs other than the default; they differ in every knob."""
    space = LOWERING.space(target, shape)
    pool = list(space)[1:]
    return random.Random(0).sample(pool, count)


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=str)
def test_default_config_on_all_cases(cpu: Target, shape: Shape) -> None:
    check_config(OP, cpu, shape)


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=str)
def test_sampled_configs_on_all_cases(cpu: Target, shape: Shape) -> None:
    for config in sampled(cpu, shape, 2):
        check_config(OP, cpu, shape, config)


@pytest.mark.parametrize("shape", OP.odd_shapes[:3], ids=str)
def test_any_number_of_workers_gives_the_same(cpu: Target, shape: Shape) -> None:
    """Workers are a launch argument: one compiled kernel; 16 of them cut most sequences here."""
    default = LOWERING.space(cpu, shape).default()
    for workers in (1, 3, 16):
        check(OP, LOWERING.build(cpu, shape, {**default, "workers": workers}), shape, seed=workers)


@pytest.mark.parametrize("arch", ["x86-avx2", "x86"])
def test_narrower_vectors_on_all_cases(cpu: Target, arch: str) -> None:
    """Eight and four lanes, whatever this machine has."""
    if not cpu.arch.startswith("x86-avx"):
        pytest.skip(f"needs AVX2, this is {cpu.arch}")
    for shape in (OP.odd_shapes[2], OP.odd_shapes[4]):
        check_config(OP, targets.load("cpu", arch=arch), shape)


@pytest.mark.parametrize(("heads", "dv", "kv_dtype"), [(5, 40, "bfloat16"), (17, 8, "float32")])
def test_keys_that_end_within_a_cache_line(cpu: Target, heads: int, dv: int,
                                           kv_dtype: str) -> None:
    """Their last elements come one by one; values narrower than an output tile."""
    check_config(OP, cpu, {"heads": heads, "head_dim_v": dv, "rope": 12, "page": 16, "s_q": 2,
                           "dtype": "float32", "kv_dtype": kv_dtype, "causal": True, "batch": 3,
                           "ctx": 40})


@pytest.mark.parametrize(("threads", "batch", "heads", "group"), [
    (1, 1, 128, 128), (2, 1, 128, 64), (4, 1, 128, 32), (8, 1, 128, 128), (2, 2, 128, 128),
    (2, 1, 16, 16), (2, 1, 48, 48)])
def test_threads_share_heads_before_they_cut_a_sequence(threads: int, batch: int, heads: int,
                                                        group: int) -> None:
    """As long as each takes 32 rows or more; 48 rows in groups of 32 would not be even shares."""
    shape: Shape = {"heads": heads, "head_dim_v": 512, "rope": 64, "page": 64, "s_q": 1,
                    "dtype": "float32", "kv_dtype": "bfloat16", "causal": True, "batch": batch,
                    "ctx": 1024}
    target = targets.load("cpu", unit=f"x86-avx2:{threads}")
    assert LOWERING.space(target, shape).default()["group"] == group


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_fp8_codes_of_any_scale_become_float32(cpu: Target, scale: float) -> None:
    """All 254 finite codes beside the scores: of one key the values are the output."""
    if cpu.arch.startswith("x86-avx"):
        cpu = targets.load("cpu", arch="x86-avx2")
    shape: Shape = {"heads": 8, "head_dim_v": 256, "rope": 64, "page": 1, "s_q": 1,
                    "dtype": "float32", "kv_dtype": "fp8", "causal": True, "batch": 1, "ctx": 1}
    q, cache, *rest = OP.inputs(shape, 0)
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    cache[..., :256] = codes
    cache[..., 256:264] = torch.full((2,), scale).view(torch.uint8)
    kernel = LOWERING.build(cpu, shape, LOWERING.space(cpu, shape).default())
    got = run_once(kernel, OP, (torch.zeros_like(q), cache, *rest))[0]
    want = codes.view(torch.float8_e4m3fn).float() * torch.tensor(scale)
    assert torch.equal(got, want.expand_as(got))


def test_fp8_cache_equals_its_dequantised_rows(cpu: Target) -> None:
    """The fp8 kernel on bytes against the float32 kernel on the values behind them."""
    fp8: Shape = {"heads": 5, "head_dim_v": 256, "rope": 64, "page": 16, "s_q": 1,
                  "dtype": "float32", "kv_dtype": "fp8", "causal": True, "batch": 2, "ctx": 100}
    plain = {**fp8, "kv_dtype": "float32"}
    q, cache, *rest = OP.inputs(fp8, 3)
    got, want = (run_once(LOWERING.build(cpu, s, LOWERING.space(cpu, s).default()), OP,
                          (q, c, *rest))
                 for s, c in ((fp8, cache), (plain, unpack_fp8(cache, 256))))
    assert mismatches(got, want, {"float32": 1e-6}) is None


def test_fp8_rows_have_flashmla_layout() -> None:
    rows = torch.randn(7, 576, generator=torch.Generator().manual_seed(0))
    rows[:, 128:256] *= 100.0
    packed = pack_fp8(rows, 512)
    assert packed.shape == (7, 656) == (7, fp8_row_bytes(512, 64))
    scale = packed[:, 512:528].contiguous().view(torch.float32)
    assert mismatch(scale, rows[:, :512].unflatten(1, (4, 128)).abs().amax(2) / 448, 1e-6) is None
    back = unpack_fp8(packed, 512)
    assert torch.equal(back[:, 512:], rows[:, 512:].bfloat16().float())
    assert ((back[:, :512] - rows[:, :512]).abs().unflatten(1, (4, 128)).amax(2)
            <= scale * 16.001).all()                     # half an ulp of 448


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_agree_with_calls(preset: str) -> None:
    """What `shapes` promises is what `shape_of` reads from `inputs`, and outputs fit."""
    for shape in OP.shapes(PRESETS[preset], TINY_LOAD):
        args = OP.inputs(shape, 0)
        assert OP.shape_of(*args) == shape
        out = OP.empty(*args)
        assert [o.shape for o in out] == [
            (shape["batch"], 1, shape["heads"], shape["head_dim_v"]),
            (shape["batch"], shape["heads"], 1)]
    assert OP.work(shape).flops > 0 and OP.work(shape).bytes > 0


def test_poisoned_slots_would_show(cpu: Target) -> None:
    """A length that is one too long reads a NaN: the poison of `cases` is where it must be."""
    shape = OP.odd_shapes[0]
    q, cache, table, lengths, *rest = next(iter(OP.cases(shape, 0)))[1]
    kernel = LOWERING.build(cpu, shape, LOWERING.space(cpu, shape).default())
    clean = run_once(kernel, OP, (q, cache, table, lengths, *rest))[0]
    dirty = run_once(kernel, OP, (q, cache, table, lengths + 1, *rest))[0]
    assert clean.isfinite().all() and not dirty[0].isfinite().any()


def test_misuse_is_refused() -> None:
    q, cache, table, lengths, *rest = OP.inputs(OP.odd_shapes[0], 0)
    for args, rule in (((q.double(), cache, table, lengths), "q must be"),
                       ((q, cache[..., :-1], table, lengths), "kv_cache must be"),
                       ((q, cache.transpose(0, 1).contiguous().transpose(0, 1), table, lengths),
                        "contiguous"),
                       ((q, cache.half(), table, lengths), "kv_cache must be"),
                       ((q, cache, table.long(), lengths), "block_table must be"),
                       ((q, cache, table, lengths[:1]), "cache_seqlens must be")):
        with pytest.raises((ValueError, TypeError), match=rule):
            OP.shape_of(*args, *rest)


def test_the_space_holds_real_alternatives(cpu: Target) -> None:
    for shape in OP.odd_shapes:
        space = LOWERING.space(cpu, shape)
        assert 24 <= len(list(islice(space, 1000))) < 1000
        assert space.why_not(space.default()) is None
