"""A card that runs what lowerings launch, and times it; not run on hardware so far."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from struct import pack as packed
from typing import Any

from torch import Tensor

from ...base import RunFailed
from ..devices import Device
from ..launches import Launch
from .arguments import pack
from .binary import Binary, Toolchain
from .library import Library
from .mirror import Mirror
from .npu import Npu, Stopwatch, address_of
from .prepare import binary_of
from .routes import Route, choose

_MOST_BLOCKS = 65_535                # CANN's limit of a launch
_FLUSH_BYTES = 256 << 20             # beyond the 192 MiB that triton-ascend clears for a cold L2


@dataclass(frozen=True)
class _Ready:
    """A kernel that CANN knows."""

    binary: Binary
    written: tuple[int, ...]
    handle: int


class Card:
    """One NPU with the kernels and buffers of this process.

    Tensors live on the card where torch_npu is installed. Where it is not they live in this
    machine's memory: every launch copies them there and its results back, outside the clock.

    Args:
        torch_stream: gives torch_npu's current stream; None without torch_npu.
        torch_device: where tensors must live then.
    """

    def __init__(self, library: Library, index: int, chip: Device, tools: Toolchain,
                 cache_dir: Path, torch_stream: Callable[[], int] | None = None,
                 torch_device: str = "cpu"):
        self.npu, self.chip, self.tools = Npu(library, index), chip, tools
        self.torch_device = torch_device
        self._cache_dir, self._torch_stream = cache_dir, torch_stream
        self._route: Route | None = None
        self._ready: dict[Any, _Ready] = {}
        self._buffers: dict[tuple[str, int], tuple[int, int]] = {}   # what for, stream -> at, size
        self._watch: Stopwatch | None = None
        self._laps: list[float] | None = None    # while timing without torch_npu

    @property
    def route(self) -> Route:
        """rt* or aclrt*."""
        if self._route is None:
            self.npu.use()
            self._route = choose(self.npu.library)
        return self._route

    @property
    def stream(self) -> int:
        """Where launches are queued; torch_npu empties its own queue when asked for it."""
        return self.npu.stream if self._torch_stream is None else self._torch_stream()

    def launch(self, made: Launch) -> None:
        """Run a kernel over its grid; AclError when CANN refuses, or later when it faults."""
        blocks = prod(made.grid)
        if blocks > _MOST_BLOCKS:
            raise RunFailed(f"CANN launches at most {_MOST_BLOCKS} blocks, the grid "
                            f"{list(made.grid)} has {blocks}; take larger tiles", "illegal")
        ready = self._prepared(made)
        self.npu.use()
        stream = self.stream
        if self._torch_stream is None:
            self._launch_copied(ready, made, stream)
            return
        own = [self._address(a) if isinstance(a, Tensor) else int(a) for a in made.args]
        self._start(ready, own, made.grid, stream)

    def _address(self, tensor: Tensor) -> int:
        if tensor.device.type != self.torch_device.partition(":")[0]:
            raise ValueError(f"tensors must be on {self.torch_device}, got one on {tensor.device}")
        return tensor.data_ptr()

    def _launch_copied(self, ready: _Ready, made: Launch, stream: int) -> None:
        mirror = Mirror(self.npu, made.args)
        try:
            if self._laps is not None:
                self._flush(stream)
                self._stopwatch().start(stream)
            self._start(ready, mirror.own, made.grid, stream)
            if self._laps is not None:
                self._laps.append(self._stopwatch().stop(stream))
            self.npu.wait(stream)
            mirror.fetch(ready.written)
        finally:
            mirror.close()

    def _prepared(self, made: Launch) -> _Ready:
        key = made.program, tuple(sorted(made.flags.items()))
        if key not in self._ready:
            binary, written = binary_of(made, self.chip, self.tools, self._cache_dir)
            self._ready[key] = _Ready(binary, written, self.route.register(binary))
        return self._ready[key]

    def _start(self, ready: _Ready, own: list[int], grid: tuple[int, int, int], stream: int
               ) -> None:
        binary, blocks = ready.binary, prod(grid)
        workspace = self._buffer("workspace", binary.workspace_bytes * blocks, stream)
        lock = self._buffer("lock", 8 * binary.locks, stream)
        if binary.locks:
            first = address_of(packed("<q", binary.lock_value) * binary.locks)
            self.npu.wait(stream)        # the kernel before it may still hold them
            self.npu.upload(lock, addressof(first), 8 * binary.locks)
        flags = self.npu.core_flags() if "flags" in binary.kinds else 0
        arguments = pack(binary.kinds, flags, lock, workspace, own, grid)
        self.route.launch(ready.handle, blocks, arguments, stream)

    def _buffer(self, what: str, size: int, stream: int) -> int:
        """Memory that launches on one stream share; 0 where none is wanted."""
        if not size:
            return 0
        address, have = self._buffers.get((what, stream), (0, 0))
        if have < size:
            if address:
                self.npu.wait(stream)
                self.npu.free(self._buffers.pop((what, stream))[0])
            address = self.npu.allocate(size)
            self._buffers[what, stream] = address, size
        return address

    def _flush(self, stream: int) -> None:
        self.npu.fill(self._buffer("flush", _FLUSH_BYTES, stream), _FLUSH_BYTES, stream)

    def _stopwatch(self) -> Stopwatch:
        if self._watch is None:
            self._watch = Stopwatch(self.npu)
        return self._watch

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Median device time of `inner` calls, each with a cold L2, in microseconds.

        With torch_npu from before a call to after it. Without, the sum of its kernels, the L2
        cold before each of them: copies lie between.
        """
        return median(self._once_us(fn) for _ in range(inner))

    def _once_us(self, fn: Callable[[], object]) -> float:
        if self._torch_stream is None:
            self._laps = []
            try:
                fn()
                return sum(self._laps)
            finally:
                self._laps = None
        self.npu.use()
        self._flush(self.stream)
        self._stopwatch().start(self.stream)
        fn()
        return self._stopwatch().stop(self.stream)

    def close(self) -> None:
        """Give buffers, events and the stream back."""
        for address, _ in self._buffers.values():
            self.npu.free(address)
        self._buffers = {}
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.npu.close()

