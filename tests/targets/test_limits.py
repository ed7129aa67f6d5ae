"""The measured limits of this CPU: plausible, cached, and measured again when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expertile import targets
from expertile.targets.base import Target


def test_limits_are_measured_once(cpu: Target, tmp_path: Path) -> None:
    if why := cpu.available():
        pytest.skip(why)
    target = targets.load("cpu", cache_dir=tmp_path)
    first = target.limits()
    assert set(first) == {"bandwidth", "flops"}
    assert all(f.confidence == "measured" and f.source.startswith("measured 20")
               for f in first.values())
    assert 0.5 < first["bandwidth"].value < 2000 and 1 < first["flops"].value < 100_000
    (path,) = (tmp_path / "limits").glob("*.json")
    stamp = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace('"busy": true', '"busy": false'))
    stamp = path.stat().st_mtime_ns
    assert set(target.limits()) == set(first) and path.stat().st_mtime_ns == stamp
    path.write_text("{")
    assert set(target.limits()) == set(first) and path.stat().st_mtime_ns != stamp


def test_kernels_read_and_add_everything(cpu: Target, tmp_path: Path) -> None:
    if why := cpu.available():
        pytest.skip(why)
    import tvm

    from expertile.targets.cpu.limits_tvm import fma_kernel, read_kernel

    module = tvm.IRModule({"read": read_kernel(2, 4, 64, 8), "fma": fma_kernel(2, 3, 5, 8)})
    tvm.compile(module, target="llvm").export_library(str(tmp_path / "x.so"))
    library = tvm.runtime.load_module(str(tmp_path / "x.so"))
    data = torch.randint(-9, 9, (2, 4, 64)).float()
    sums, out = torch.empty(2, 8), torch.empty(2, 3, 8)
    library["read"](data, sums)
    assert torch.equal(sums, data.view(2, 4, 8, 8).sum((1, 2)))
    library["fma"](torch.tensor([2.0, 1.0]), out)
    want = torch.arange(3.0) * 32 + 31
    assert torch.equal(out, want[None, :, None].expand(2, 3, 8))
