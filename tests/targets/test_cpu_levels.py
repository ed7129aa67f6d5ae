"""CPU feature levels: which one this machine is, and what compilers are told."""

from __future__ import annotations

import platform

import pytest
import torch

from expertile import targets
from expertile.targets.cpu.levels import LEVELS, host_arch


def test_the_host_has_all_that_its_level_needs_and_not_all_of_a_better_one() -> None:
    has = torch.cpu.get_capabilities()
    names = list(LEVELS)
    best = names.index(host_arch())
    assert all(has[name] for name in LEVELS[names[best]].needs)
    assert not any(LEVELS[name].runs_here() for name in names[:best])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 machine refuses ARM levels")
def test_another_machine_is_refused_by_name() -> None:
    assert targets.load("cpu", arch="aarch64-dotprod").available() == (
        f"this machine is {host_arch()}, not aarch64-dotprod")


def test_an_unknown_level_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown CPU level 'x86-avx1024'; there are x86-amx"):
        targets.load("cpu", arch="x86-avx1024")


def test_features_are_part_of_the_toolchain() -> None:
    flags = {targets.load("cpu", arch=name).toolchain()["mcpu"] for name in LEVELS}
    assert len(flags) == len(LEVELS)
