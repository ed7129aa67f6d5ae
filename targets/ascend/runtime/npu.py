"""One NPU through CANN: its name, memory, copies, a stream, events."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_float, c_uint32, c_uint64

from .cann import NoCann
from .library import INITIALISED, AclError, Library

_HUGE_FIRST = 0                      # ACL_MEM_MALLOC_HUGE_FIRST
_TO_DEVICE, _TO_HOST = 1, 2          # aclrtMemcpyKind


class Npu:
    """A device by its index. Opened by the first call that needs it."""

    def __init__(self, library: Library, index: int):
        self.library = library
        self.index = index
        self._ready = threading.local()  # a device is current in a thread
        self._stream: int | None = None

    def use(self) -> None:
        """Make the device this thread's; opens it at the first call."""
        if getattr(self._ready, "yes", False):
            return
        try:
            self.library.call("aclInit", None)
        except AclError as e:
            if e.code != INITIALISED:
                raise
        self.library.call("aclrtSetDevice", self.index)
        self._ready.yes = True

    def soc_name(self) -> str:
        """What the chip calls itself; NoCann where there is no such device."""
        try:
            self.use()
        except AclError as e:
            raise NoCann(f"npu:{self.index} cannot be used: {e}; `npu-smi info` lists the cards, "
                         "and its user must be in the group of /dev/davinci*") from e
        return self.library.soc_name()

    @property
    def stream(self) -> int:
        """Our own stream, for a process without torch_npu."""
        if self._stream is None:
            self.use()
            self._stream = self.library.handle("aclrtCreateStream")
        return self._stream

    def allocate(self, size: int) -> int:
        """Device memory, 32-byte aligned by CANN."""
        self.use()
        return self.library.handle("aclrtMalloc", max(size, 1), _HUGE_FIRST)

    def free(self, address: int) -> None:
        """Give memory back."""
        self.use()
        self.library.call("aclrtFree", address)

    def upload(self, address: int, source: int, size: int) -> None:
        """Copy from this machine's memory; done when it returns."""
        self.library.call("aclrtMemcpy", address, size, source, size, _TO_DEVICE)

    def download(self, target: int, address: int, size: int) -> None:
        """Copy into this machine's memory; done when it returns."""
        self.library.call("aclrtMemcpy", target, size, address, size, _TO_HOST)

    def fill(self, address: int, size: int, stream: int) -> None:
        """Write zeros, in the order of a stream."""
        self.library.call("aclrtMemsetAsync", address, size, 0, size, stream)

    def wait(self, stream: int) -> None:
        """Until all of a stream is done; a fault of a kernel shows here."""
        self.library.call("aclrtSynchronizeStream", stream)

    def core_flags(self) -> int:
        """The address of the flags that cores of a mix kernel signal each other with (c220)."""
        if self.library.has("rtGetC2cCtrlAddr"):
            address, length = c_uint64(0), c_uint32(0)
            self.library.call("rtGetC2cCtrlAddr", byref(address), byref(length))
            return address.value
        return self.library.handle("aclrtGetHardwareSyncAddr")

    def close(self) -> None:
        """Give the stream back."""
        if self._stream is not None:
            self.library.call("aclrtDestroyStream", self._stream)
            self._stream = None


class Stopwatch:
    """Two events on a stream."""

    def __init__(self, npu: Npu):
        npu.use()
        self._npu = npu
        self._start, self._end = (npu.library.handle("aclrtCreateEvent") for _ in range(2))

    def start(self, stream: int) -> None:
        """Put the first event into the stream."""
        self._npu.library.call("aclrtRecordEvent", self._start, stream)

    def stop(self, stream: int) -> float:
        """Put the second one, wait for it: microseconds between them, on the device's clock."""
        library = self._npu.library
        library.call("aclrtRecordEvent", self._end, stream)
        library.call("aclrtSynchronizeEvent", self._end)
        elapsed = c_float(0.0)
        library.call("aclrtEventElapsedTime", byref(elapsed), self._start, self._end)
        return elapsed.value * 1e3

    def close(self) -> None:
        """Give the events back."""
        for event in (self._start, self._end):
            self._npu.library.call("aclrtDestroyEvent", event)


def address_of(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """A copy of bytes that C can read, alive as long as the object is."""
    return ctypes.create_string_buffer(data, len(data))
