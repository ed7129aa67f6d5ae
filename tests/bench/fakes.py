"""Results as a gate makes them, without measuring: the truth of every case is known."""

from __future__ import annotations

from collections.abc import Mapping

from expertile.bench.result import Case, Machine, Result

from .samples import samples

MACHINE = Machine("AMD EPYC, 2 threads, 24 GiB, Linux", "x86-avx2-t2", 2, "0123456789ab")


def gate_result(ratios: Mapping[str, float], seed: int = 0, us: float = 500.0,
                machine: Machine = MACHINE, noise: float = 0.004) -> Result:
    """Cases whose head takes `ratio` times as long as base."""
    cases = []
    for number, (name, ratio) in enumerate(ratios.items()):
        at = seed + 10 * number
        cases.append(Case(
            name, "gemm_nt", "ok",
            {"base": samples(us, noise=noise, seed=at),
             "base_again": samples(us, noise=noise, seed=at + 1),
             "head": samples(us * ratio, noise=noise, seed=at + 2)},
            {"tokens": 16}, {"base": {"tile": 8}, "head": {"tile": 8}},
            {"base": "default", "head": "default"}, "", "L4 timed", us / 2, 1e8, 1e6, 2))
    tools = {"torch": "2.13.0", "tvm": "0.27", "python": "3.11.2"}
    return Result(machine, {"base": tools, "head": tools}, tuple(cases), "2026-11-22T09:00:00Z",
                  "0.1.0", "expertile bench gate --base HEAD~1",
                  {"base": "a" * 40, "head": "b" * 40}, {"bandwidth": 40.0, "flops": 200.0},
                  {"rounds": 40, "block": 2, "configs": "default", "sample_us": 1000.0})


def run_result(us: Mapping[str, float], seed: int = 0, machine: Machine = MACHINE) -> Result:
    """One side and its twin, as `bench run` measures them."""
    cases = tuple(Case(name, "gemm_nt", "ok", {"head": samples(t, seed=seed + 5 * i),
                                               "head_again": samples(t, seed=seed + 5 * i + 1)},
                       floor_us=t / 2) for i, (name, t) in enumerate(us.items()))
    return Result(machine, {"head": {"torch": "2.13.0"}}, cases, "2026-11-22T09:00:00Z", "0.1.0",
                  settings={"block": 2, "configs": "default", "sample_us": 1000.0},
                  revision={"head": "c" * 40}, anchor=samples(300, rounds=8, seed=77))
