"""Stages as triton-ascend 3.2 has them: ttir, ttadapter, npubin."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import stub_musa.compiler as vendor
from triton.backends.compiler import GPUTarget

_KERNEL = """
module {
  func.func @NAME(%sb: memref<?xi8>, %ws: memref<?xi8>, %X: memref<?xf16>, %Y: memref<?xf32>,
      %gx: i32, %gy: i32, %gz: i32, %px: i32, %py: i32, %pz: i32)
      attributes {SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64,
                  global_kernel = "local", mix_mode = "aiv", parallel_mode = "simd"} {
    %c = arith.constant 4096 : i32
    %o32 = arith.muli %px, %c : i32
    %o = arith.index_cast %o32 : i32 to index
    %r = memref.reinterpret_cast %X to offset: [%o], sizes: [ROWS, 128], strides: [128, 1]
        : memref<?xf16> to memref<ROWSx128xf16, strided<[128, 1], offset: ?>>
    %l = memref.alloc() : memref<ROWSx128xf16>
    memref.copy %r, %l : memref<ROWSx128xf16, strided<[128, 1], offset: ?>> to memref<ROWSx128xf16>
    %t = bufferization.to_tensor %l restrict writable : memref<ROWSx128xf16>
    %f = arith.extf %t : tensor<ROWSx128xf16> to tensor<ROWSx128xf32>
    %y = arith.mulf %f, %f : tensor<ROWSx128xf32>
    %w = memref.reinterpret_cast %Y to offset: [%o], sizes: [ROWS, 128], strides: [128, 1]
        : memref<?xf32> to memref<ROWSx128xf32, strided<[128, 1], offset: ?>>
    bufferization.materialize_in_destination %y in writable %w
        : (tensor<ROWSx128xf32>, memref<ROWSx128xf32, strided<[128, 1], offset: ?>>) -> ()
    return
  }
}
"""


class StubAscend(vendor.StubBackend):
    """Triton finds it through the entry point."""

    binary_ext = "npubin"

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """Its own target alone."""
        return bool(target.backend == "npu")

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any = None) -> None:
        """Triton's IR, then the adapter's text; the binary needs what is not here."""
        vendor.StubBackend.add_stages(self, stages, options, language)

        def adapter(module: Any, metadata: dict[str, Any]) -> str:
            how = os.environ.get("STUB_VENDOR")
            if how == "adapter":
                raise subprocess.CalledProcessError(
                    1, ["triton-adapter-opt"], b"", b"k.mlir:3:5: error: no such lowering\nmore")
            name = re.search(r"tt\.func public @(\w+)", str(module))
            assert name is not None
            return _KERNEL.replace("NAME", name[1]).replace("ROWS", "512" if how == "huge" else
                                                            "32")

        def binary(source: str, metadata: dict[str, Any]) -> bytes:
            raise OSError("ASCEND_HOME_PATH is not set")

        stages["ttadapter"] = adapter
        stages["npubin"] = binary
