"""The compiler: options of its own, one stage."""

from __future__ import annotations

import os
from dataclasses import dataclass, make_dataclass
from typing import Any

from triton._C.libtriton import ir, passes
from triton.backends.compiler import BaseBackend, GPUTarget


@dataclass(frozen=True)
class _Options:
    num_warps: int = 4
    num_ctas: int = 1
    cluster_dims: tuple[int, ...] = (1, 1, 1)
    en_wmma: bool = False
    debug: bool = False
    sanitize_overflow: bool = False
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e4nv", "fp8e5")
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32x3")
    max_num_imprecise_acc_default: int = 0
    ir_override: str | None = None
    instrumentation_mode: str = ""           # this and the next are what Triton itself passes
    fpsan_homomorphic_casts: bool = False
    arch: str = "31"
    backend_name: str = "musa"

    def __post_init__(self) -> None:
        assert self.num_warps in (1, 4, 16), "num_warps must be 1, 4 or 16"

    def hash(self) -> str:
        """Part of the cache's key."""
        return str(self)


_Staged = make_dataclass("_Staged", [("num_stages", int, 2)], bases=(_Options,), frozen=True)


class StubBackend(BaseBackend):
    """Triton finds it through the entry point."""

    binary_ext = "ttir"

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """Its own target alone."""
        return bool(target.backend == "musa")

    def hash(self) -> str:
        """Part of the cache's key."""
        return "stub"

    def parse_options(self, options: dict[str, Any]) -> Any:
        """Unknown options are dropped, as real backends do."""
        kind = _Options if os.environ.get("STUB_VENDOR") == "no stages" else _Staged
        return kind(**{k: v for k, v in options.items() if k in kind.__dataclass_fields__})

    def pack_metadata(self, metadata: Any) -> tuple[int, ...]:
        """What a launcher would take."""
        return (metadata.num_warps,)

    def get_codegen_implementation(self, options: Any) -> dict[str, Any]:
        """Dot products as small as Triton allows."""
        return {"min_dot_size": lambda lhs, rhs: (1, 1, 16)}

    def get_module_map(self) -> dict[str, Any]:
        """No device library."""
        return {}

    def load_dialects(self, context: Any) -> None:
        """Triton's own are enough."""

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any = None) -> None:
        """Triton's IR, simplified; nothing below it."""
        def ttir(module: Any, metadata: dict[str, Any]) -> Any:
            if os.environ.get("STUB_VENDOR") == "crash in compile":
                os.abort()
            manager = ir.pass_manager(module.context)
            passes.common.add_inliner(manager)
            passes.common.add_canonicalizer(manager)
            manager.run(module, "stub")
            metadata["name"] = "stub"
            metadata["shared"] = 1024
            return module

        stages["ttir"] = ttir
