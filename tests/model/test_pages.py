"""Weights in large pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expertile import targets
from expertile.model.pages import zeros

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> set[str]:
    """What Linux was told of the memory at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return set(rest)
    return set()


@pytest.mark.skipif(not SETTING.exists(), reason="this Linux has no large pages")
def test_large_weights_ask_for_large_pages() -> None:
    weight = zeros(3, 2048, 1024, dtype=torch.float8_e4m3fn)
    assert weight.shape == (3, 2048, 1024) and weight.dtype == torch.float8_e4m3fn
    assert weight.is_contiguous() and not weight.view(torch.uint8).any()
    assert "hg" in flags_of(weight.data_ptr() + weight.numel() // 2)
    weight[1] = 1.0                  # it may be written, and outlives its maker
    assert weight.float().sum() == 2048 * 1024


def test_small_and_foreign_ones_are_torchs() -> None:
    assert zeros(2, 3, dtype=torch.bfloat16).tolist() == [[0.0] * 3] * 2
    assert zeros(4096, 4096, device=torch.device("meta")).device.type == "meta"
    assert zeros(0, 7).shape == (0, 7)


def test_cpus_are_measured_in_large_pages() -> None:
    child = targets.load("cpu").worker(4.0)
    try:
        assert child.call("os:getenv", 60.0, key="GLIBC_TUNABLES") == "glibc.malloc.hugetlb=1"
    finally:
        child.close()
