"""Kernels for another kind of CPU, run under qemu: whether they compute the right numbers.

An emulator says nothing of speed. What runs is the artifact itself, loaded by a small C program
(runner.c) that brings what compiled kernels call; no TVM for that machine is needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch

from ...ops.space import Config
from ...ops.spec import Shape
from ..base import Artifact, Evidence, Figure, Recipe
from . import CpuTarget, artifacts
from .levels import Level

TIMEOUT_S = 120.0
_RUNNER = Path(__file__).with_name("runner.c")
_INT, _FLOAT, _TENSOR = 1, 3, 7      # type indices of TVM-FFI
# torch dtype -> DLPack's type code and bits
_CODES = {torch.int8: (0, 8), torch.int16: (0, 16), torch.int32: (0, 32), torch.int64: (0, 64),
          torch.uint8: (1, 8), torch.float16: (2, 16), torch.float32: (2, 32),
          torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.bool: (6, 8)}
_PAGE = 4096
_CANARY = b"\xa5"                    # between the tensors: what changes there was written past one


@dataclass(frozen=True)
class EmulatedCpu(CpuTarget):
    """A feature level whose kernels run under qemu-user, as on the oldest CPU that has it."""

    def available(self) -> str | None:
        """None, or what to install."""
        return super().available() if find_spec("tvm") is None else why_not(self.level)

    def evidence(self) -> Evidence:
        """Executed by an emulator: right or wrong is known, fast or slow is not."""
        return super().evidence() if self.available() else "L3 executed and checked"

    def limits(self) -> Mapping[str, Figure]:
        """None: an emulator's speed is nobody's."""
        return {}

    def compile(self, op_name: str, static: Shape, config: Config) -> Artifact:
        """The functions of a config; a call runs them under the emulator."""
        path = artifacts.built(self, op_name, static, config)
        return _Emulated(path, self.level, self.threads, runner(self.level, self.cache_dir))

    def recipe(self) -> Recipe:
        """How a child process makes this target again."""
        function, arguments = super().recipe()
        return function, {**arguments, "emulate": True}

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Refused."""
        raise RuntimeError(f"{self.arch} is emulated here: times would mean nothing")


def why_not(level: Level) -> str | None:
    """None, or what the emulation of a level lacks on this machine."""
    if not level.emulated:
        return f"no emulator here has the features of this level of {level.machine}"
    needed = {qemu(level): "qemu-user-static", f"{level.triple}-gcc": f"gcc-{level.triple}"}
    missing = [package for program, package in needed.items() if which(program) is None]
    if not (_sysroot(level) / "lib" / "libc.so.6").exists():
        missing.append("libc6-dev-arm64-cross")
    return f"to emulate {level.machine}: apt-get install {' '.join(missing)}" if missing else None


def qemu(level: Level) -> str:
    """The emulator's name."""
    return f"qemu-{level.machine}-static"


def _sysroot(level: Level) -> Path:
    return Path("/usr") / level.triple


def runner(level: Level, cache_dir: Path) -> Path:
    """The program that loads a kernel, compiled once for that kind of machine."""
    digest = hashlib.sha256(_RUNNER.read_bytes()).hexdigest()[:16]
    path = cache_dir / "emulated" / f"runner-{level.machine}-{digest}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "runner"
            # kernels call libm, and whoever loads them has it
            subprocess.run([f"{level.triple}-gcc", "-O1", "-Wall", "-rdynamic", str(_RUNNER), "-o",
                            str(made), "-Wl,--no-as-needed", "-lm", "-ldl", "-lpthread"],
                           check=True, capture_output=True, text=True)
            os.replace(made, path)
    return path


class _Emulated:
    """The functions of an artifact; every call is a process of the emulator."""

    def __init__(self, path: Path, level: Level, threads: int, program: Path):
        self._path, self._threads = path, threads
        self._command = [qemu(level), "-cpu", level.emulated, "-L", str(_sysroot(level)),
                         str(program), str(path)]

    def __getitem__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                memory = _Memory(args, self._threads)
                file = Path(scratch) / "memory"
                file.write_bytes(memory.image)
                done = subprocess.run([*self._command, name, str(file)], capture_output=True,
                                      text=True, timeout=TIMEOUT_S, check=False)
                if done.returncode:
                    raise RuntimeError(f"{self._path.name} {name} failed under the emulator "
                                       f"(status {done.returncode}): {done.stderr[-2000:]}")
                memory.restore(file.read_bytes())
        return call


class _Memory:
    """The arguments of a call as one file: a head of 64-bit words, then each storage once.

    Storages keep their place modulo 64, so a kernel sees the alignment that it would see at home;
    views of one storage stay views of one.
    """

    def __init__(self, args: tuple[Any, ...], threads: int):
        self._places: dict[int, tuple[Any, int]] = {}    # data pointer -> (storage, offset)
        storages = [t.untyped_storage() for t in args if isinstance(t, torch.Tensor)]
        end = _PAGE
        for storage in storages:
            at = storage.data_ptr()
            if at not in self._places:
                self._places[at] = storage, end + at % 64
                end = -(-(end + at % 64 + storage.nbytes() + 1) // _PAGE) * _PAGE + _PAGE
        words = [threads, len(args)]
        for arg in args:
            words += self._words(arg)
        if len(words) * 8 > _PAGE:
            raise ValueError(f"the head of a call has {len(words)} words, at most {_PAGE // 8}")
        image = bytearray(_CANARY * end)
        struct.pack_into(f"<{len(words)}q", image, 0, *words)
        for storage, offset in self._places.values():
            image[offset:offset + storage.nbytes()] = ctypes.string_at(storage.data_ptr(),
                                                                       storage.nbytes())
        self.image = bytes(image)

    def _words(self, arg: Any) -> list[int]:
        if isinstance(arg, torch.Tensor):
            code, bits = _CODES[arg.dtype]
            _, base = self._places[arg.untyped_storage().data_ptr()]
            offset = base + int(arg.storage_offset()) * arg.element_size()
            return [_TENSOR, offset, code, bits, arg.ndim, *arg.shape, *arg.stride()]
        if isinstance(arg, float):
            return [_FLOAT, struct.unpack("<q", struct.pack("<d", arg))[0]]
        return [_INT, int(arg)]

    def restore(self, image: bytes) -> None:
        """Copy what the kernel wrote back; raise if it wrote anywhere else."""
        end = _PAGE
        for storage, offset in self._places.values():
            self._check(image, end, offset)
            end = offset + storage.nbytes()
            ctypes.memmove(storage.data_ptr(), image[offset:end], storage.nbytes())
        self._check(image, end, len(image))

    def _check(self, image: bytes, first: int, last: int) -> None:
        if image[first:last] != self.image[first:last]:
            at = next(i for i in range(first, last) if image[i] != self.image[i])
            raise RuntimeError(f"the kernel wrote outside its tensors: {at - first} bytes past "
                               "the end of one, or before the next")
