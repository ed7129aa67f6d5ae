"""The two kernels behind the measured limits."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def read_kernel(threads: int, streams: int, row: int, lanes: int) -> Any:
    """read(data [threads, streams, row], sums [threads, lanes]): every element once."""

    @T.prim_func(s_tir=True)
    def main(data: T.handle, sums: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "read", "tirx.noalias": True})
        D = T.match_buffer(data, (threads, streams, row), "float32")
        S = T.match_buffer(sums, (threads, lanes), "float32")
        for t in T.parallel(threads):
            with T.sblock("task"):
                acc = T.sblock_alloc_buffer((streams, lanes), "float32", scope="local")
                for s in T.unroll(streams):
                    for v in T.vectorized(lanes):
                        acc[s, v] = T.float32(0)
                for i in range(row // lanes):
                    for s in T.unroll(streams):
                        for v in T.vectorized(lanes):
                            acc[s, v] = acc[s, v] + D[t, s, i * lanes + v]
                for v in T.vectorized(lanes):
                    S[t, v] = T.float32(0)
                for s in T.unroll(streams):
                    for v in T.vectorized(lanes):
                        S[t, v] = S[t, v] + acc[s, v]

    return main


def fma_kernel(threads: int, chains: int, steps: int, lanes: int) -> Any:
    """fma(factors [2], out [threads, chains, lanes]): x = x * factor + summand, `steps` times."""

    @T.prim_func(s_tir=True)
    def main(factors: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "fma", "tirx.noalias": True})
        F = T.match_buffer(factors, (2,), "float32")
        O = T.match_buffer(out, (threads, chains, lanes), "float32")
        for t in T.parallel(threads):
            with T.sblock("task"):
                acc = T.sblock_alloc_buffer((chains, lanes), "float32", scope="local")
                for c in T.unroll(chains):
                    for v in T.vectorized(lanes):
                        acc[c, v] = T.Cast("float32", c)
                for _ in range(steps):
                    for c in T.unroll(chains):
                        for v in T.vectorized(lanes):
                            acc[c, v] = acc[c, v] * F[0] + F[1]
                for c in T.unroll(chains):
                    for v in T.vectorized(lanes):
                        O[t, c, v] = acc[c, v]

    return main
