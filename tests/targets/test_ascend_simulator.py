"""Gate c: the simulator gets clean kernels right, raises no false alarm, and finds corruptions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.targets.data.ascend import calls
from tests.targets.data.ascend.mutations import mutations

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")

from expertile.ops.numerics import mismatch, same_bits
from expertile.targets.ascend.artifact import Artifact
from expertile.targets.ascend.compiler import compile_module
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.simulator import Fault, NotModelled, simulate

DEVICE = find("910b3")
CALLS = {
    "quant_f16": calls.group_quant(2, 256, 32),
    "quant_bf16": calls.group_quant(2, 256, 16, "bf16"),
    "gemm": calls.gemm(128, 256, 192, 64, 128, 64),
    **{f"grouped_{dtype}": calls.grouped_gemm((33, 0, 32, 3), 256, 256, 32, 128, 128, dtype)
       for dtype in calls.TORCH},
    "mla": calls.mla_decode((1, 31, 32, 33, 70), 16, 16, 32, 128, 64),
    "mla_576": calls.mla_decode((70,), 16, 16, 64, 512, 64)}
SMALL = (calls.group_quant(1, 128, 32), calls.gemm(64, 128, 192, 64, 128, 64),
         calls.grouped_gemm((20,), 128, 256, 32, 128, 128),
         calls.grouped_gemm((20,), 128, 256, 32, 128, 128, "i8"),
         calls.mla_decode((70,), 16, 16, 32, 128, 64))


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


def test_corruptions_are_caught() -> None:
    caught, missed = Counter(), []
    for call in SMALL:
        made = compiled(call)
        clean = simulate(made, call.arguments, call.grid)
        for mutation in mutations(made.text, seed=1)[:28]:
            try:
                got = simulate(replace(made, text=mutation.text), call.arguments, call.grid)
            except Fault:
                caught[mutation.kind] += 1
                continue
            if all(same_bits(g, c).all() for g, c in zip(got, clean, strict=True)):
                missed.append((made.name, mutation.kind, mutation.line))
            else:
                caught[mutation.kind] += 1
    assert set(caught) == {"removed", "no barrier", "event", "late", "address"}
    assert sum(caught.values()) >= 100
    assert len(missed) <= 0.05 * (sum(caught.values()) + len(missed)), missed


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
    on_950 = compile_module(call.module, find("950pr_9599"))
    assert isinstance(on_950, Artifact)
    with pytest.raises(NotModelled, match="950"):
        simulate(on_950, call.arguments, call.grid)
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
