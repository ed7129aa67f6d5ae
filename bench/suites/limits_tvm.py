"""The kernels behind a suite's limits that the target does not measure: copy, dot products."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from ...ops._tvm import bf16dot


def copy_kernel(threads: int, streams: int, row: int, lanes: int) -> Any:
    """copy(source [threads, streams, row], to [threads, streams, row])."""

    @T.prim_func(s_tir=True)
    def main(source: T.handle, to: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "copy", "tirx.noalias": True})
        S = T.match_buffer(source, (threads, streams, row), "float32")
        D = T.match_buffer(to, (threads, streams, row), "float32")
        for t in T.parallel(threads):
            with T.sblock("task"):
                for i in range(row // lanes):
                    for s in T.unroll(streams):
                        for v in T.vectorized(lanes):
                            D[t, s, i * lanes + v] = S[t, s, i * lanes + v]

    return main


def dot_kernel(threads: int, chains: int, steps: int, lanes: int) -> Any:
    """dot(pairs [2, lanes], out [threads, chains, lanes]): `steps` sums of bfloat16 pairs."""

    @T.prim_func(s_tir=True)
    def main(pairs: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "dot", "tirx.noalias": True})
        P = T.match_buffer(pairs, (2, lanes), "int32")
        R = T.match_buffer(out, (threads, chains, lanes), "float32")
        with bf16dot.imported(lanes):
            for t in T.parallel(threads):
                with T.sblock("task"):
                    acc = T.sblock_alloc_buffer((chains, lanes), "float32", scope="local")
                    for c in T.unroll(chains):
                        for v in T.vectorized(lanes):
                            acc[c, v] = T.Cast("float32", c)
                    for _ in range(steps):
                        for c in T.unroll(chains):
                            acc[c, T.ramp(0, 1, lanes)] = bf16dot.dot(
                                acc[c, T.ramp(0, 1, lanes)], P[0, T.ramp(0, 1, lanes)],
                                P[1, T.ramp(0, 1, lanes)], lanes)
                    for c in T.unroll(chains):
                        for v in T.vectorized(lanes):
                            R[t, c, v] = acc[c, v]

    return main
