"""Compiled CPU kernels on disk, by content: a second process compiles nothing."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ops.source import source_hash
from ...ops.space import Config
from ...ops.spec import Shape
from ..base import Artifact, BuildError
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout
from .cross import linker

if TYPE_CHECKING:
    from . import CpuTarget

# Our buffers are declared as small as they can be, and this pass takes half of a GEMM's compile
# time to find that out; the code differs by a few bytes of stack (docs/facts.md).
DISABLED_PASSES = ("s_tir.CompactBufferAllocation",)
BUILD_TIMEOUT_S = 120.0              # a 4096-fold unroll keeps LLVM busy for more than 100 s


def artifact_path(target: CpuTarget, op_name: str, static: Shape, config: Config) -> Path:
    """Where the artifact of a config stands: its name is a hash of all that decides its code."""
    identity = [op_name, sorted(static.items()), sorted(config.items()), target.toolchain(),
                target.arch, target.threads, source_hash(op_name, target.lang)]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return target.cache_dir / "kernels" / f"{op_name}-{digest[:24]}.so"


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def is_sound(path: Path) -> bool:
    """Whether an artifact is there and is, bit for bit, what was built."""
    try:
        want = _digest_path(path).read_text()
        return hashlib.sha256(path.read_bytes()).hexdigest() == want
    except OSError:
        return False


_mine = threading.local()            # a child dies with the thread that started it


def _builder() -> Child:
    """This thread's compiler process."""
    child: Child | None = getattr(_mine, "child", None)
    if child is None:
        child = _mine.child = Child()
    return child


def build_in_child(target: CpuTarget, op_name: str, static: Shape, config: Config,
                   child: Child | None = None, timeout_s: float = BUILD_TIMEOUT_S) -> Path:
    """Make sure that the artifact is on disk; BuildError says why when it cannot be."""
    path = artifact_path(target, op_name, static, config)
    if is_sound(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (child or _builder()).call(
            f"{__name__}:build_artifact", timeout_s, arch=target.arch, threads=target.threads,
            cache_dir=str(target.cache_dir), op_name=op_name, static=dict(static),
            config=dict(config))
    except ChildTimeout as e:
        raise BuildError(str(e), "timeout") from e
    except ChildCrashed as e:
        raise BuildError(str(e), "build_error") from e
    except ChildFailed as e:
        raise BuildError(str(e), "oom" if e.kind == "MemoryError" else "build_error") from e
    return path


def build_artifact(arch: str, threads: int, cache_dir: str, op_name: str, static: dict[str, Any],
                   config: dict[str, Any]) -> str:
    """Runs in the child: lower, compile, link, move into place."""
    import tvm

    from ...ops import lowering
    from . import CpuTarget

    target = CpuTarget(threads, Path(cache_dir), arch)
    path = artifact_path(target, op_name, static, config)
    functions = lowering(op_name, target.lang).lower(target, static, config)
    llvm = tvm.target.Target(target.level.llvm(threads))
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / "kernel.so"
        with tvm.transform.PassContext(opt_level=3, disabled_pass=list(DISABLED_PASSES)):
            tvm.compile(tvm.IRModule(functions), target=llvm).export_library(
                str(built), fcompile=linker(target.level))
        digest = Path(scratch) / "digest"
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        os.replace(built, path)
        os.replace(digest, _digest_path(path))
    return str(path)


_SHARE_CPUS = -3                     # TVM's kSpecifyThreadShareAllCore: nothing is pinned


def use_threads(threads: int) -> None:
    """Give TVM's pool, of which a process has one, this many threads on any of our CPUs.

    TVM's other modes pin the calling thread to one core, and everything forked from it
    (docs/facts.md), so this must come before anything that starts the pool.
    """
    import tvm

    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_CPUS, threads, cpus)


class _Module:
    """A loaded artifact; the TVM pool has the target's threads from then on."""

    def __init__(self, path: Path, threads: int, amx: bool):
        import torch
        import tvm

        self._module: Any = tvm.runtime.load_module(str(path))
        use_threads(threads)
        if amx and not torch.cpu._init_amx():    # the kernel's leave to use the tile registers
            raise RuntimeError("the operating system does not let this process use AMX; take a "
                               "level without it, such as cpu:x86-avx512-bf16")

    def __getitem__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = self._module[name]
        return function


@cache
def _loaded(path: Path, threads: int, amx: bool) -> _Module:
    return _Module(path, threads, amx)


class _Foreign:
    """An artifact for another machine: there to be looked at and shipped, not to be called."""

    def __init__(self, path: Path, arch: str):
        self._path, self._arch = path, arch

    def __getitem__(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any) -> None:
            raise RuntimeError(f"{self._path} holds {self._arch} code, which this machine cannot "
                               "run; emulate it with targets.load('cpu', arch=..., emulate=True)")
        return refuse


def load_or_build(target: CpuTarget, op_name: str, static: Shape, config: Config) -> Artifact:
    """The artifact's functions; a damaged cache entry is built again."""
    path = built(target, op_name, static, config)
    if not target.level.runs_here():
        return _Foreign(path, target.arch)
    return _loaded(path, target.threads, "amx" in target.dots)


def built(target: CpuTarget, op_name: str, static: Shape, config: Config) -> Path:
    """The artifact's file: from the disk cache, else made in a child, or here without isolation."""
    if target.isolate:
        return build_in_child(target, op_name, static, config)
    path = artifact_path(target, op_name, static, config)
    if not is_sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        build_artifact(target.arch, target.threads, str(target.cache_dir), op_name, dict(static),
                       dict(config))
    return path
