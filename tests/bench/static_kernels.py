"""One small FP8 GEMM with every code-generation fault that the static gate must name."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])
def gemm(a, b, out, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """out[M, N] = a[M, K] @ b[N, K].T; sizes divide the tiles."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(a + rows[:, None] * K + k + inner[None, :])
        w = tl.load(b + columns[:, None] * K + k + inner[None, :])
        acc = tl.dot(x, w.T, acc)
    tl.store(out + rows[:, None] * N + columns[None, :], acc.to(tl.bfloat16))


@triton.jit(do_not_specialize=["M", "N", "K"])
def gemm_without_hint(a, b, out, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                      BLOCK_K: tl.constexpr):
    """The same; nothing says any more that K is a multiple of 16."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(a + rows[:, None] * K + k + inner[None, :])
        w = tl.load(b + columns[:, None] * K + k + inner[None, :])
        acc = tl.dot(x, w.T, acc)
    tl.store(out + rows[:, None] * N + columns[None, :], acc.to(tl.bfloat16))


@triton.jit(do_not_specialize=["M"])
def gemm_that_spills(a, b, out, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                     BLOCK_K: tl.constexpr):
    """The same with a second accumulator that lives as long as the first."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(a + rows[:, None] * K + k + inner[None, :])
        w = tl.load(b + columns[:, None] * K + k + inner[None, :])
        acc = tl.dot(x, w.T, acc)
        other = other * tl.exp2(acc) + acc
    tl.store(out + rows[:, None] * N + columns[None, :], (acc + other).to(tl.bfloat16))
