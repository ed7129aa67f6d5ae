"""From a launch to the binary that a card loads, and what an examination keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...base import BuildError, Examined
from ..artifact import Artifact
from ..compiler import compile_module, unusable
from ..devices import Device
from ..examine import ONE_ROW
from ..launches import Launch
from .binary import Binary, Toolchain, load_or_build


def binary_of(launch: Launch, chip: Device, tools: Toolchain, cache_dir: Path
              ) -> tuple[Binary, tuple[int, ...]]:
    """A launch's binary, and which of its arguments it writes; BuildError says why there is none.

    Before it is built, ascendnpu-ir's compiler is asked where it is installed: what it refuses or
    is known to get wrong does not run.
    """
    from ..emit import emit  # TVM is imported once something is launched

    emitted = emit(launch.program, "device")

    def allow() -> None:
        if unusable() is not None:
            return
        made = compile_module(emitted.text, chip, launch.flags)
        if not isinstance(made, Artifact):
            raise BuildError(f"{emitted.name}: {made.reason}", made.status)
        if ONE_ROW.search(made.text):
            raise BuildError(f"{emitted.name}: bishengir-compile multiplies only the first row of "
                             "a tile that is gathered row by row", "illegal")

    return (load_or_build(emitted.text, chip, launch.flags, tools, cache_dir, allow),
            emitted.written)


def examined(seen: Examined | None, launches: Sequence[Launch], chip: Device, tools: Toolchain,
             cache_dir: Path) -> Examined:
    """Build the binaries of a config that is legal so far; BuildError when CANN cannot.

    `seen` is what ascendnpu-ir's compiler says, None where it is not installed.
    """
    if seen is not None and not seen.legal:
        return seen
    kernels = []
    for i, launch in enumerate(launches):
        binary, _ = binary_of(launch, chip, tools, cache_dir)
        kernels.append({
            "name": binary.name, "grid": list(launch.grid),
            **(seen.kernels[i] if seen is not None else {}),
            "workspace_bytes": binary.workspace_bytes, "binary_bytes": len(binary.data),
            "binary_sha256": binary.sha256, "binary_compiler": binary.compiler})
    found = seen or Examined(True, "", "L0 described")
    return replace(found, evidence="L2 native object", kernels=tuple(kernels))
