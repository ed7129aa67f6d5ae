"""How torch's threads and TVM's live side by side in one process: one of the two pools at a time.

Both pools spin for milliseconds after their last task. Where torch's operators and our kernels take
turns on the same cores, as in a model, kernels lose their second core to torch's idle threads
(docs/facts.md has the measurement). libgomp reads its variables only when it is loaded, before any
code of ours, so the policy is not a variable: whoever runs our kernels keeps torch at one thread
meanwhile. The bundled model does that by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import sched_getaffinity
from typing import Any

import torch

POLICY = ("kernels run on TVM's pool, which pins nothing; torch is kept at one thread meanwhile, "
          "so that its idle threads do not take the kernels' cores")
ADVICE = ("the bundled model keeps the policy by itself; in a program of your own call "
          "torch.set_num_threads(1) where kernels and torch take turns, or start it with "
          "GOMP_SPINCOUNT=1000")


@contextmanager
def one_pool() -> Iterator[None]:
    """Torch at one thread inside, and as it was afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fighting(env: Mapping[str, str]) -> str:
    """Why kernels called now would be slowed by torch's threads; "" if not.

    `env` is the environment that this process was started with, which libgomp read.
    """
    threads = torch.get_num_threads()
    short = env.get("GOMP_SPINCOUNT", "")
    if threads == 1 or env.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return ""
    if short.isdigit() and int(short) <= 10_000:
        return ""
    return f"torch has {threads} threads here, which spin after each of its operators"


def pools(env: Mapping[str, str]) -> dict[str, Any]:
    """For `doctor`: both pools, the policy, and what it asks of a program of the user's own."""
    why = fighting(env)
    return {"usable_cpus": len(sched_getaffinity(0)), "torch": torch.get_num_threads(),
            "policy": POLICY, "your_program": why and f"{why}: {ADVICE}"}
