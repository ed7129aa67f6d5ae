"""The kernel cache: a second process compiles nothing, a damaged entry is built again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.targets.base import BuildError
from expertile.targets.child import Child
from expertile.targets.cpu.artifacts import artifact_path, build_in_child, is_sound

_USE = """
import json, sys, torch
from expertile import ops, targets
from expertile.targets.child import Child
compiled = []
call = Child.call
Child.call = lambda self, *args, **kwargs: compiled.append(args) or call(self, *args, **kwargs)
op = ops.load("silu_mul")
x = torch.linspace(-3, 3, 3 * 128).view(3, 128)
target = targets.load("cpu", cache_dir=sys.argv[1])
shape = op.shape_of(x)
out = op.empty(x)
target.build_kernel(op, shape, target.space(op, shape).default())(x, out=out)
print(json.dumps([len(compiled), out[0].tolist()]))
"""


def use(cache: Path) -> tuple[int, torch.Tensor]:
    """A fresh process that calls one kernel: how often it compiled, and what came out."""
    done = subprocess.run([sys.executable, "-c", _USE, str(cache)], capture_output=True, text=True,
                          check=True)
    compiled, out = json.loads(done.stdout)
    return compiled, torch.tensor(out)


def test_a_second_process_compiles_nothing_and_damage_is_repaired(tmp_path: Path) -> None:
    x = torch.linspace(-3, 3, 3 * 128).view(3, 128)
    gate, up = x.double().chunk(2, -1)
    want = (torch.nn.functional.silu(gate) * up).float()
    compiled, out = use(tmp_path)
    assert compiled == 1 and torch.allclose(out, want, rtol=1e-5, atol=1e-6)
    compiled, again = use(tmp_path)
    assert compiled == 0 and torch.equal(again, out)
    built, = (tmp_path / "kernels").glob("*.so")
    whole = built.read_bytes()
    for damage in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        built.write_bytes(damage)
        compiled, repaired = use(tmp_path)
        assert compiled == 1 and torch.equal(repaired, out)
        assert is_sound(built)


def test_the_path_depends_on_everything_that_decides_the_code(tmp_path: Path) -> None:
    op = ops.load("silu_mul")
    static = {"h": 64, "dtype": "float32"}
    target = targets.load("cpu:1", cache_dir=tmp_path)
    config = target.space(op, {**static, "tokens": 1}).default()
    paths = {
        artifact_path(target, op.name, static, config),
        artifact_path(target, op.name, {**static, "h": 65}, config),
        artifact_path(target, op.name, static, {**config, "lanes": 8}),
        artifact_path(targets.load("cpu:2", cache_dir=tmp_path), op.name, static, config),
        artifact_path(targets.load("cpu:1", cache_dir=tmp_path, arch="x86"), op.name, static,
                      config),
    }
    assert len(paths) == 5


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    target = targets.load("cpu", cache_dir=tmp_path)
    static = {"h": 64, "dtype": "float32"}
    with pytest.raises(BuildError) as failed:
        build_in_child(target, "silu_mul", static, {"lanes": 0, "rows": 4, "serial": 1},
                       child=Child(), timeout_s=60)
    assert failed.value.status == "build_error"
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.sha256"))


def test_a_thread_that_ends_takes_nobody_elses_compiler_with_it() -> None:
    """The kernel kills a child with the thread that started it, so threads do not share one."""
    from threading import Thread

    from expertile.targets.cpu.artifacts import _builder

    found = []
    other = Thread(target=lambda: found.append(_builder()))
    other.start()
    other.join()
    assert found[0] is not _builder() and _builder() is _builder()
