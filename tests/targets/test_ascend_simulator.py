"""Gate c: the simulator gets clean kernels right, raises no false alarm, and finds corruptions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.targets.data.ascend import calls

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")

from expertile.ops.numerics import mismatch, same_bits
from expertile.targets.ascend.artifact import Artifact
from expertile.targets.ascend.compiler import compile_module
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.simulator import Fault, NotModelled, simulate
from expertile.targets.ascend.simulator.library import work
from expertile.targets.ascend.simulator.memory import Space, View

DEVICE = find("910b3")
CALLS = {
    "quant_f16": calls.group_quant(2, 256, 32),
    "quant_bf16": calls.group_quant(2, 256, 16, "bf16"),
    "gemm": calls.gemm(128, 256, 192, 64, 128, 64),
    **{f"grouped_{dtype}": calls.grouped_gemm((33, 0, 32, 3), 256, 256, 32, 128, 128, dtype)
       for dtype in calls.TORCH},
    "mla": calls.mla_decode((1, 31, 32, 33, 70), 16, 16, 32, 128, 64),
    "mla_576": calls.mla_decode((70,), 16, 16, 64, 512, 64)}


def compiled(call: calls.Call) -> Artifact:
    made = compile_module(call.module, DEVICE)
    assert isinstance(made, Artifact), made
    return made


def check(call: calls.Call) -> None:
    after = simulate(compiled(call), call.arguments, call.grid)
    for got, want in zip(after[-len(call.want):], call.want, strict=True):
        assert mismatch(got, want, call.rtol) is None


@pytest.mark.parametrize("name", CALLS)
def test_matches_torch(name: str) -> None:
    check(CALLS[name])


def test_no_false_alarm_on_clean_kernels() -> None:
    """Random tiles of every kernel; what the compiler refuses is no kernel."""
    pick, seen = random.Random(7), Counter()
    while sum(seen.values()) < 20:
        bm, bk = pick.choice((16, 32, 64, 128)), pick.choice((32, 64, 128))
        bn, seed = pick.choice((32, 64, 128)), pick.randrange(1000)
        kind = pick.choice(("quant", "gemm", "f16", "bf16", "i8", "mla"))
        if kind == "quant":
            call = calls.group_quant(1, 256, bm, pick.choice(("f16", "bf16")), seed)
        elif kind == "gemm":
            call = calls.gemm(bm, 2 * bn, 3 * bk, bm, bn, bk, seed)
        elif kind == "mla":
            call = calls.mla_decode((pick.randint(1, 3 * bk),), 32, pick.choice((16, 32)), bk,
                                    pick.choice((64, 128, 256)), pick.choice((32, 64)), seed)
        else:
            rows = (pick.randint(1, 2 * bm), pick.randint(1, bm))
            call = calls.grouped_gemm(rows, bn, 2 * bk, bm, bn, bk, kind, seed)
        if isinstance(compile_module(call.module, DEVICE), Artifact):
            check(call)
            seen[kind] += 1
    assert len(seen) == 6


@pytest.mark.parametrize(("old", "new", "why"), (
    ("arith.constant 24576 :", "arith.constant 24592 :", "aligned to 32 bytes"),
    ("arith.constant 24576 :", "arith.constant 196608 :", "are used of 196608"),
    ("    hivm.hir.pipe_barrier[<PIPE_V>]\n", "", "while a write to them may be going on"),
    ("set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]", "set_flag[<PIPE_MTE3>, <PIPE_V>, "
     "<EVENT_ID0>]", "nobody set"),
    ("[1024, 1]", "[999999, 1]", "are used of"),
    ), ids=("misaligned", "outside", "no_barrier", "wrong_pipe", "global"))
def test_a_fault_says_what_and_where(old: str, new: str, why: str) -> None:
    call = calls.group_quant(1, 1024, 32)
    made = compiled(call)
    assert old in made.text
    with pytest.raises(Fault, match=why) as fault:
        simulate(replace(made, text=made.text.replace(old, new)), call.arguments, call.grid)
    assert "of quant, core 0" in str(fault.value)


def test_data_under_another_buffer_shows_in_the_result() -> None:
    call = calls.group_quant(1, 1024, 32)
    made = compiled(call)
    x_abs, x = "pointer_cast(%c25600_i64)", "pointer_cast(%c8192_i64)"
    assert made.text.count(x_abs) == 1 and x in made.text
    overlapping = replace(made, text=made.text.replace(x_abs, x))
    quantised = simulate(overlapping, call.arguments, call.grid)[1]
    assert not same_bits(quantised, call.want[0]).all()


def test_rows_that_nobody_wrote_may_be_read_when_no_result_needs_them() -> None:
    """Of a tile's 64 rows 20 are loaded, without the zeros that the kernel puts under them."""
    call = calls.grouped_gemm((20,), 128, 256, 64, 128, 128)
    made = compiled(call)
    zeros = next(line for line in made.text.splitlines() if "call @set_l1_2d_half" in line)
    bare = replace(made, text=made.text.replace(zeros + "\n", ""))
    after = simulate(bare, call.arguments, call.grid)
    assert mismatch(after[-1], call.want[0], call.rtol) is None


def test_a_missing_cross_core_flag_is_a_deadlock() -> None:
    call = calls.grouped_gemm((20,), 128, 256, 32, 128, 128, "i8")
    made = compiled(call)
    line = next(x for x in made.text.splitlines() if "sync_block_set" in x)
    with pytest.raises(Fault, match=r"cores \[1, 2\] wait"):
        simulate(replace(made, text=made.text.replace(line + "\n", "", 1)), call.arguments,
                 call.grid)


def test_it_says_when_it_cannot_tell() -> None:
    call = calls.gemm(64, 128, 64, 64, 128, 64)
    made = compiled(call)
    with pytest.raises(NotModelled, match="nd2nz_quarter"):
        simulate(replace(made, text=made.text.replace("@nd2nz_half(", "@nd2nz_quarter(")),
                 call.arguments, call.grid)
    with pytest.raises(ValueError, match="takes 3 arguments, got 2"):
        simulate(made, call.arguments[:2], call.grid)


def test_arguments_are_not_touched() -> None:
    call = calls.gemm(64, 128, 64, 64, 128, 64)
    before = [a.clone() for a in call.arguments]
    simulate(compiled(call), call.arguments, call.grid)
    assert all(torch.equal(a, b) for a, b in zip(call.arguments, before, strict=True))


def test_the_950_as_far_as_it_is_modelled() -> None:
    """Products to the last number; vector code as to order and addresses; both together not."""
    device = find("950pr_9599")
    call = calls.gemm(128, 256, 192, 64, 128, 64)
    made = compile_module(call.module, device)
    assert isinstance(made, Artifact)
    assert mismatch(simulate(made, call.arguments, call.grid)[-1], call.want[0], call.rtol) is None
    forgot = next(line for line in made.text.splitlines() if "wait_flag[<PIPE_M>" in line)
    with pytest.raises(Fault):
        simulate(replace(made, text=made.text.replace(forgot + "\n", "", 1)), call.arguments,
                 call.grid)
    quant = calls.group_quant(2, 256, 32)
    made = compile_module(quant.module, device)
    assert isinstance(made, Artifact)
    with pytest.raises(NotModelled, match="the order and the addresses of all accesses hold"):
        simulate(made, quant.arguments, quant.grid)
    wait = next(x for x in made.text.splitlines() if "wait_flag[<PIPE_MTE2>, <PIPE_V>" in x)
    both = made.text.replace(wait + "\n", "").replace(wait.replace("wait_", "set_") + "\n", "")
    with pytest.raises(Fault, match="read while a write"):
        simulate(replace(made, text=both), quant.arguments, quant.grid)
    mla = calls.mla_decode((70,), 16, 16, 32, 128, 64)
    made = compile_module(mla.module, device)
    assert isinstance(made, Artifact)
    with pytest.raises(NotModelled, match="cube and vector cores"):
        simulate(made, mla.arguments, mla.grid)


def test_views_of_one_tensor_are_one_memory() -> None:
    """A cache that a kernel writes through two views keeps what both wrote."""
    call = calls.group_quant(2, 256, 32)
    made = compiled(call)
    x, q, s = call.arguments
    room = torch.full((q.numel() + 4 * s.numel(),), 7, dtype=torch.uint8)
    codes = room[:q.numel()].view(torch.int8).view(q.shape)
    scales = room[q.numel():].view(torch.float32).view(s.shape)
    after = simulate(made, (x, codes, scales), call.grid)
    assert same_bits(after[1], call.want[0]).all() and same_bits(after[2], call.want[1]).all()
    assert after[1].untyped_storage().data_ptr() == after[2].untyped_storage().data_ptr()


def test_a_load_pads_its_last_block_and_what_is_left_of_it() -> None:
    """Template/lib/DMA/Ubuf: pad values go to the left, and behind a row up to 32 bytes."""
    gm = Space("gm", torch.arange(8, dtype=torch.float32).view(torch.uint8), 1, on_chip=False)
    ub = Space("ub", torch.full((128,), 0xFF, dtype=torch.uint8), 1, align=32)
    source = View(gm, 0, "f32", 0, (3,), (1,))

    def loaded(at: int, mode: int, left: int) -> list[float]:
        ub.data.fill_(0)
        ub.data.view(torch.float32).fill_(-1.0)
        task = work("load_gm_to_ubuf_1d_float", (source, View(ub, 0, "f32", at, (3,), (1,)), mode,
                                                 9.0, left))
        task.write.write(task.compute([source.read()]))
        return ub.data.view(torch.float32)[:16].tolist()

    assert loaded(0, 2, 0) == [0, 1, 2, 9, 9, 9, 9, 9] + [-1] * 8
    assert loaded(0, 0, 0) == [0, 1, 2, 0, 0, 0, 0, 0] + [-1] * 8
    assert loaded(2, 2, 2) == [9, 9, 0, 1, 2, 9, 9, 9] + [-1] * 8
    assert loaded(3, 0, 0) == [-1, -1, -1, 0, 1, 2] + [-1] * 10      # within the first block
    assert loaded(6, 0, 0) == [-1] * 6 + [0, 1, 2] + [0] * 7
