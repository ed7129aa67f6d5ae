"""One tuning process for each device of this machine, each with its share of the shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import torch
import typer

Workers = Annotated[str, typer.Option(
    "--workers", help="auto: a process for each GPU of this machine (one on a CPU, where two would "
                      "disturb each other); or a number of them.")]
Share = Annotated[str, typer.Option("--share", hidden=True)]

_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "hip": "HIP_VISIBLE_DEVICES"}
T = TypeVar("T")


def count_of(workers: str, device: str) -> int:
    """How many processes --workers means on a device.

    Raises:
        ValueError: it is no number, or more than there are devices.
    """
    family, _, unit = device.partition(":")
    there = torch.cuda.device_count() if family in _VISIBLE and not unit else 1
    if workers == "auto":
        return max(1, there)
    if not workers.isdigit() or not int(workers):
        raise ValueError(f"--workers takes auto or a number from 1, got {workers!r}")
    if int(workers) > max(1, there) and family != "null":
        raise ValueError(f"--workers {workers} needs as many devices, but {device} is "
                         f"{max(1, there)}; two tuners on one device disturb each other's times")
    return int(workers)


def share_of(share: str, tasks: Sequence[T]) -> Sequence[T]:
    """The tasks of one process: "1/4" has every fourth from the second on; "" has all."""
    if not share:
        return tasks
    place, _, of = share.partition("/")
    return tasks[int(place)::int(of)]


def visible(device: str, place: int, env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a process sees only the place-th of our devices, as its first."""
    name = _VISIBLE.get(device.partition(":")[0])
    if name is None:
        return dict(env)
    seen = [d for d in env.get(name, "").split(",") if d]
    return {**env, name: seen[place] if seen else str(place)}


def tune_on_each(count: int, device: str, argv: Sequence[str]) -> None:
    """Run this very command once for each device, with a share; returns when all have ended.

    What a process that dies leaves undone is the caller's: it finds the rest in the database.
    """
    command = [sys.executable, "-m", "expertile", *argv, "--workers", "1"]
    processes = [subprocess.Popen([*command, "--share", f"{i}/{count}"],
                                  env=visible(device, i, os.environ), stdout=subprocess.DEVNULL)
                 for i in range(count)]
    try:
        codes = [p.wait() for p in processes]
    except BaseException:
        for p in processes:
            p.terminate()
        raise
    for place, code in enumerate(codes):
        if code not in (0, 1):
            print(f"worker {place} ended with exit code {code}; its shapes are tuned here",
                  file=sys.stderr)
