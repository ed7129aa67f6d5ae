"""CANN's shared libraries through ctypes: prototypes of what is called, and codes as words."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Literal

from ...base import RunFailed
from .cann import INSTALL, Cann, NoCann

Status = Literal["wrong", "illegal", "run_error", "timeout", "oom"]
OUT = POINTER(c_void_p)              # where a handle or an address is written

# From the public headers acl/acl_rt.h and runtime/rt.h, as triton-ascend 3.2 and others use them.
PROTOTYPES: Mapping[str, tuple[Any, ...]] = {
    "aclInit": (c_char_p,),
    "aclrtSetDevice": (c_int,),
    "aclrtCreateStream": (OUT,),
    "aclrtDestroyStream": (c_void_p,),
    "aclrtSynchronizeStream": (c_void_p,),
    "aclrtMalloc": (OUT, c_size_t, c_int),
    "aclrtFree": (c_void_p,),
    "aclrtMemcpy": (c_void_p, c_size_t, c_void_p, c_size_t, c_int),
    "aclrtMemsetAsync": (c_void_p, c_size_t, c_int, c_size_t, c_void_p),
    "aclrtCreateEvent": (OUT,),
    "aclrtDestroyEvent": (c_void_p,),
    "aclrtRecordEvent": (c_void_p, c_void_p),
    "aclrtSynchronizeEvent": (c_void_p,),
    "aclrtEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "aclrtGetHardwareSyncAddr": (OUT,),
    "aclrtBinaryLoadFromData": (c_void_p, c_size_t, c_void_p, OUT),
    "aclrtBinaryGetFunction": (c_void_p, c_char_p, OUT),
    "aclrtLaunchKernelWithHostArgs": (c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_size_t,
                                      c_void_p, c_size_t),
    "rtGetC2cCtrlAddr": (POINTER(c_uint64), POINTER(c_uint32)),
    "rtDevBinaryRegister": (c_void_p, OUT),
    "rtFunctionRegister": (c_void_p, c_void_p, c_char_p, c_char_p, c_uint32),
    "rtKernelLaunch": (c_void_p, c_uint32, c_void_p, c_uint32, c_void_p, c_void_p),
}
INITIALISED = 100002                 # aclInit has been called before, by torch_npu for example

# Codes of rt_error_codes.h that a launcher meets, what they mean, what to do, a record's status.
CODES: Mapping[int, tuple[str, Status]] = {
    107000: ("a parameter is not valid", "run_error"),
    107001: ("there is no such device; `npu-smi info` lists them", "run_error"),
    107002: ("no device was set in this thread", "run_error"),
    107003: ("the stream is another context's", "run_error"),
    107022: ("the task was aborted, mostly by an earlier fault: restart the process", "run_error"),
    207000: ("this device or driver does not have the feature", "run_error"),
    207001: ("the device is out of memory", "oom"),
    507008: ("the binary was compiled for another chip", "illegal"),
    507014: ("the cube core ran into its time limit", "timeout"),
    507015: ("the cube core stopped: an address or an instruction was not valid", "illegal"),
    507016: ("the cube core trapped", "illegal"),
    507027: ("the binary does not have the kernel", "run_error"),
    507034: ("the vector core ran into its time limit", "timeout"),
    507035: ("the vector core stopped: an address or an instruction was not valid", "illegal"),
    507036: ("the vector core trapped", "illegal"),
    507046: ("waiting for the stream took too long", "timeout"),
    507899: ("the driver failed, mostly after an earlier fault: restart the process", "run_error"),
}


class AclError(RunFailed):
    """A call into CANN failed."""

    def __init__(self, function: str, code: int, said: str):
        meaning, status = CODES.get(code, ("see CANN's list of error codes", "run_error"))
        super().__init__(f"{function} failed with {code}: {meaning}" + (f" ({said})" if said
                                                                        else ""), status)
        self.function, self.code = function, code


class Library:
    """libascendcl, and libruntime where it is; every call is checked."""

    def __init__(self, cann: Cann):
        self.cann = cann
        self._opened = [opened for name in ("libruntime.so", "libascendcl.so")
                        if (opened := _open(cann, name)) is not None]
        self._functions: dict[str, Any] = {}

    def has(self, *names: str) -> bool:
        """Whether all these functions are exported."""
        return all(self._function(name) is not None for name in names)

    def call(self, name: str, *args: Any) -> None:
        """Call a function that returns a code; AclError when it is not 0."""
        function = self._function(name)
        if function is None:
            raise NoCann(f"CANN {self.cann.version} at {self.cann.home} does not export {name}; "
                         f"{INSTALL}")
        code = int(function(*args))
        if code:
            raise AclError(name, code, self._last_words())

    def handle(self, name: str, *args: Any) -> int:
        """Call a function whose first parameter is where it writes a handle or an address."""
        made = c_void_p()
        self.call(name, ctypes.byref(made), *args)
        return made.value or 0

    def soc_name(self) -> str:
        """What the chip calls itself, "Ascend910B3"; "" where it does not say."""
        function = self._bound("aclrtGetSocName", c_char_p, ())
        said = function() if function is not None else None
        return said.decode(errors="replace") if said else ""

    def _last_words(self) -> str:
        function = self._bound("aclGetRecentErrMsg", c_char_p, ())
        said = function() if function is not None else None
        return " ".join(said.decode(errors="replace").split())[:600] if said else ""

    def _function(self, name: str) -> Any:
        return self._bound(name, c_int, PROTOTYPES[name])

    def _bound(self, name: str, returns: Any, takes: tuple[Any, ...]) -> Any:
        if name not in self._functions:
            found = next((getattr(lib, name) for lib in self._opened if hasattr(lib, name)), None)
            if found is not None:
                found.restype, found.argtypes = returns, takes
            self._functions[name] = found
        return self._functions[name]


def _open(cann: Cann, name: str) -> ctypes.CDLL | None:
    path = cann.library(name)
    if path is None:
        return None
    driver = cann.library("libascend_hal.so")    # what they need of the driver, from full paths
    try:
        for each in filter(None, (driver, path)):
            opened = ctypes.CDLL(str(each), mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        raise NoCann(f"{Path(path).name} of {cann.home} does not load ({e}); run `source "
                     f"{cann.home}/set_env.sh` first, and see that the card's driver is installed"
                     ) from e
    return opened
