"""Block-level MLIR to a device binary, by the installed CANN's compilers; kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ...base import BuildError
from ..artifact import Refused
from ..compiler import BASE_FLAGS, refusal, tool_path
from ..devices import Device
from ..process import run_program
from .arguments import Kind, layout, name_of
from .cann import INSTALL, Cann, NoCann

_TIMEOUT_S = 120.0
_MEMORY_GB = 12.0
_MIX_MODE = re.compile(r'mix_mode = "(aiv|aic|mix)"')
# What a compiler that is older than a flag does anyway; other values it cannot be told.
_BEFORE_THE_FLAG: Mapping[str, str] = {"enable-code-motion": "true"}
_HIVMC = {"c220": "hivmc", "c310": "hivmc-a5"}


@dataclass(frozen=True)
class Binary:
    """A kernel as the device loads it, and what a launch must give it."""

    name: str
    data: bytes
    mix_mode: Literal["aiv", "aic", "mix"]
    workspace_bytes: int             # for each block
    locks: int                       # 8 bytes each, set to lock_value before a launch
    lock_value: int
    kinds: tuple[Kind, ...]          # members of the argument struct
    compiler: str                    # which one, and whose

    @property
    def sha256(self) -> str:
        """Its identity."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Toolchain:
    """What makes binaries on this machine: a bishengir-compile, and where it finds hivmc."""

    program: Path
    search: tuple[Path, ...]
    version: str                     # "bishengir-compile of CANN 8.5.0"


def toolchain(cann: Cann, npu: Device) -> Toolchain:
    """CANN's own bishengir-compile, else the package's with CANN's hivmc; NoCann if neither."""
    own, hivmc = cann.tool("bishengir-compile"), cann.tool(_HIVMC[npu.family])
    if own is not None:
        return Toolchain(own, cann.tools, f"bishengir-compile of CANN {cann.version}")
    packaged = tool_path("bishengir-compile")
    if packaged is not None and hivmc is not None:
        return Toolchain(packaged, (packaged.parent, *cann.tools),
                         f"bishengir-compile of ascendnpu-ir, hivmc of CANN {cann.version}")
    raise NoCann(f"CANN {cann.version} at {cann.home} has no bishengir-compile, nor a "
                 f"{_HIVMC[npu.family]} for the one of ascendnpu-ir; {INSTALL}")


def load_or_build(module: str, npu: Device, flags: Mapping[str, str], tools: Toolchain,
                  cache_dir: Path, allow: Callable[[], None] = lambda: None) -> Binary:
    """The binary of a module, from the disk if it was built before; BuildError says why not.

    `allow` is asked before a build and may raise.
    """
    identity = json.dumps([module, npu.name, sorted(flags.items()), tools.version,
                           str(tools.program), tools.program.stat().st_mtime_ns])
    path = cache_dir / "npubin" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    kept = _load(path)
    if kept is None:
        allow()
        kept = build(module, npu, flags, tools)
        _keep(path, kept)
    return kept


def build(module: str, npu: Device, flags: Mapping[str, str], tools: Toolchain) -> Binary:
    """Compile in child processes with limits."""
    name, mode = name_of(module), _MIX_MODE.search(module)
    if mode is None:
        raise BuildError(f"{name} says no mix_mode", "build_error")
    wanted = _understood({**BASE_FLAGS, **flags}, tools)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "kernel.mlir"
        source.write_text(module)
        run = run_program(tools.program, [
            str(source), f"--target={npu.name}", *(f"--{k}={v}" for k, v in wanted.items()),
            "-o", str(folder / "kernel")], _TIMEOUT_S, _MEMORY_GB, tools.search, inherit=True)
        made = next((path for path in (folder / "kernel.o", folder / "kernel_reloc.o",
                                       folder / "kernel") if path.is_file()), None)
        if made is None:
            why: Refused = refusal(run, _TIMEOUT_S, _MEMORY_GB)
            raise BuildError(f"{name}: {why.reason}", why.status)
        said = _host_functions(folder / "libkernel.so", name)
        if mode[1] == "mix" and npu.family == "c220" and "workspace" not in said:
            raise BuildError(f"{name} runs on cube and vector cores, which meet in a workspace, "
                             f"and {tools.version} does not say how large", "build_error")
        return Binary(name, made.read_bytes(), _mode(mode[1]), said.get("workspace", 0),
                      said.get("locks", 0), said.get("lock_value", 0),
                      layout(module, npu.family == "c220"), tools.version)


def _understood(wanted: Mapping[str, str], tools: Toolchain) -> dict[str, str]:
    """The flags as this compiler knows them; BuildError names one that it lacks."""
    known, found = _help(tools), dict(wanted)
    if "--reg-based" in known:           # as triton-ascend asks of compilers that know it
        found.pop("enable-hivm-compile", None)
        found["reg-based"] = "true"
    if "--enable-triton-kernel-compile" not in known:
        return found                     # no list of its flags: it says itself what it lacks
    for flag, value in wanted.items():
        if flag in found and f"--{flag}" not in known:
            if _BEFORE_THE_FLAG.get(flag) != value:
                raise BuildError(f"{tools.version} has no --{flag}, which this config sets to "
                                 f"{value}", "illegal")
            del found[flag]
    return found


def _mode(text: str) -> Literal["aiv", "aic", "mix"]:
    return "aiv" if text == "aiv" else "aic" if text == "aic" else "mix"


@lru_cache(maxsize=8)
def _help(tools: Toolchain) -> str:
    return run_program(tools.program, ["--help"], 30.0, _MEMORY_GB, tools.search, True).output


def _host_functions(path: Path, name: str) -> dict[str, int]:
    """What the compiler's host library says of a kernel; absent where it does not say."""
    if not path.is_file():
        return {}
    library, found = ctypes.CDLL(str(path)), {}
    for key, suffix in (("workspace", "infer_workspace_shape_function"),
                        ("locks", "infer_sync_block_lock_num_function"),
                        ("lock_value", "infer_sync_block_lock_init_function")):
        function = getattr(library, f"{name}_{suffix}", None)
        if function is not None:
            function.restype, function.argtypes = ctypes.c_int64, []
            found[key] = max(0, int(function())) if key != "lock_value" else int(function())
    return found


def _keep(path: Path, binary: Binary) -> None:
    """The object first: a description without it is not found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {**asdict(binary), "sha256": binary.sha256}
    del described["data"]
    for target, data in ((path.with_suffix(".o"), binary.data),
                         (path, json.dumps(described).encode())):
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(target)


def _load(path: Path) -> Binary | None:
    try:
        described: dict[str, Any] = json.loads(path.read_text())
        whole = described.pop("sha256")
        made = Binary(**{**described, "kinds": tuple(described["kinds"]),
                         "data": path.with_suffix(".o").read_bytes()})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return made if made.sha256 == whole else None
