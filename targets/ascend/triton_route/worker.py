"""Runs where triton-ascend is: lowers an operator's Triton kernels to the MLIR of its adapter.

Nothing of CANN, torch_npu or a card is touched: Triton's JIT compiles for a target that a stand-in
driver names, and stops before bishengir-compile, which the caller runs.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from typing import Any

from .... import ops
from ....ops.space import Config, Space

BACKEND, STAGE = "npu", "ttadapter"      # of GPUTarget; what its adapter writes
_NAME = re.compile(r"func\.func @(\w+)")
_MIX = re.compile(r'mix_mode = "(\w+)"')
_NOT_THERE = ("tf32", "tf32x3")          # precisions of NVIDIA's; its dot knows ieee and hf32


@dataclass
class _Lowered:
    """One launch."""

    name: str
    grid: tuple[int, ...]
    text: str


@dataclass
class Lowerer:
    """A target for ops/<op>/triton.py that only lowers; sizes of the chip, none of a GPU."""

    arch: str                            # "Ascend910B3"
    cores: int
    shared_bytes: int                    # of a program: the unified buffer
    name: str = "ascend"
    lang: str = "triton"
    fp8: str = "bits"
    warp_size: int = 32
    has_tma: bool = False
    computes: bool = False
    torch_device: str = "meta"
    found: list[_Lowered] = field(default_factory=list)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        """Lower `kernel` for these arguments; nothing for an empty grid."""
        if 0 in grid:
            return
        known = set(kernel.arg_names) | _options()
        compiled = kernel.warmup(*args, grid=grid, **{k: v for k, v in meta.items() if k in known})
        self.found.append(_Lowered(kernel.__name__, tuple(grid), str(compiled.asm[STAGE])))


class _Driver:
    """Answers what Triton's compiler asks, for a chip that is not here."""

    def __init__(self, arch: str):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(BACKEND, arch, 0)

    def get_current_target(self) -> Any:
        """The chip."""
        return self._target

    def get_current_device(self) -> int:
        """Any will do."""
        return 0

    def get_current_stream(self, device: object) -> int:
        """Nothing is launched."""
        return 0


def describe() -> dict[str, str]:
    """Which Triton this is; ValueError when it is not triton-ascend."""
    import triton

    kind = _backend()
    if kind is None:
        raise ValueError(f"triton {triton.__version__} here has no backend for {BACKEND!r}: it is "
                         "not triton-ascend")
    return {"triton": str(triton.__version__), "backend": kind.__name__}


def configs(op_name: str, shape: dict[str, Any], arch: str, cores: int, shared_bytes: int,
            most: int) -> list[dict[str, Any]]:
    """The config to take, and others from all over the space, should it not fit."""
    space = ops.lowering(op_name, "triton").space(Lowerer(arch, cores, shared_bytes), shape)
    return [dict(c) for c in plain_configs(space, most)]


def lower(op_name: str, shape: dict[str, Any], arch: str, cores: int, shared_bytes: int,
          config: dict[str, Any]) -> list[dict[str, Any]]:
    """Each launch of one call: name, grid, MLIR."""
    import triton

    _stop_before_the_compiler()
    triton.runtime.driver.set_active(_Driver(arch))
    op, target = ops.load(op_name), Lowerer(arch, cores, shared_bytes)
    args = op.signature(shape)
    try:
        ops.lowering(op_name, "triton").build(target, shape, config)(*args, out=op.empty(*args))
    except subprocess.CalledProcessError as e:   # how the adapter's failure looks
        raise RuntimeError(_first_error((e.stderr or b"").decode(errors="replace"))) from e
    return [{"name": k.name, "grid": list(k.grid), "text": k.text} for k in target.found]


def plain_configs(space: Space, most: int) -> list[Config]:
    """Configs without what only NVIDIA's backend knows: the first, then some at even distances."""
    plain: list[Config] = [
        c for c in space if not set(_NOT_THERE) & set(map(str, c.values()))]
    plain = plain or [space.default()]
    return plain[::max(1, -(-len(plain) // most))]


def _backend() -> Any:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    for backend in backends.values():
        if backend.compiler.supports_target(GPUTarget(BACKEND, "", 0)):
            return backend.compiler
    return None


def _options() -> set[str]:
    from triton.backends.compiler import GPUTarget

    kind = _backend()
    return set(vars(kind(GPUTarget(BACKEND, "", 0)).parse_options({}))) - {"num_warps",
                                                                          "num_stages"}


def _stop_before_the_compiler() -> None:
    """Let the backend's last stage, the device binary, be empty: it would need CANN."""
    kind = _backend()
    if hasattr(kind, "add_all_stages"):
        return
    kind.add_all_stages = kind.add_stages

    def add_stages(self: Any, stages: dict[str, Any], *rest: Any) -> None:
        self.add_all_stages(stages, *rest)
        for name in list(stages)[list(stages).index(STAGE) + 1:]:
            del stages[name]
        stages[self.binary_ext] = _no_binary

    kind.add_stages = add_stages


def _no_binary(source: Any, metadata: dict[str, Any]) -> bytes:
    name, mix = (found[1] if (found := pattern.search(str(source))) else ""
                 for pattern in (_NAME, _MIX))
    metadata |= {"name": f"{name} {mix}", "kernel_name": name, "mix_mode": mix, "shared": 1,
                 "tensor_kinds": []}     # 3.2.0 splits the name at the blank
    return b""


def _first_error(said: str) -> str:
    lines = [line for line in said.splitlines() if "error:" in line or "ERROR" in line]
    return (lines or said.strip().splitlines() or ["triton-adapter-opt failed mutely"])[0][-600:]
