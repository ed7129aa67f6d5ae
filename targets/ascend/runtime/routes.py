"""The two ways to register a binary and to launch it: rt* as triton-ascend does, and aclrt*.

rt* is what objects of bishengir-compile are known to run through (triton-ascend, AscendNPU-IR's
examples); aclrt* is CANN's public interface, for an installation whose libruntime lacks the other.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, Union, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from itertools import count
from typing import Protocol

from .binary import Binary
from .cann import INSTALL, NoCann
from .library import Library
from .npu import address_of

_MAGIC_CUBE_OR_MIX, _MAGIC_VECTOR = 0x43554245, 0x41415246   # RT_DEV_BINARY_MAGIC_ELF, ..._AIVEC
_OPTION_MAGIC = 2                    # ACL_RT_BINARY_LOAD_OPT_MAGIC

_RT = ("rtDevBinaryRegister", "rtFunctionRegister", "rtKernelLaunch")
_ACLRT = ("aclrtBinaryLoadFromData", "aclrtBinaryGetFunction", "aclrtLaunchKernelWithHostArgs")


class Route(Protocol):
    """One of the two; a handle stays valid as long as the route."""

    name: str

    def register(self, binary: Binary) -> int: ...
    def launch(self, handle: int, blocks: int, arguments: bytes, stream: int) -> None: ...


def choose(library: Library) -> Route:
    """rt* where libruntime exports it, else aclrt*; NoCann names what is missing."""
    if library.has(*_RT):
        return RtRoute(library)
    if library.has(*_ACLRT):
        return AclrtRoute(library)
    lacking = [name for name in (*_RT, *_ACLRT) if not library.has(name)]
    raise NoCann(f"CANN {library.cann.version} at {library.cann.home} cannot launch a kernel: it "
                 f"does not export {', '.join(lacking)}; {INSTALL}")


def _magic(binary: Binary) -> int:
    return _MAGIC_VECTOR if binary.mix_mode == "aiv" else _MAGIC_CUBE_OR_MIX


def _keep_forever(held: object) -> None:
    """CANN knows a kernel by its stub's address for the life of the process: never reuse it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


class _DevBinary(Structure):
    """rtDevBinary_t."""

    _fields_ = [("magic", c_uint32), ("version", c_uint32), ("data", c_void_p),
                ("length", c_uint64)]


class RtRoute:
    """rtDevBinaryRegister, rtFunctionRegister, rtKernelLaunch."""

    name = "rt"

    def __init__(self, library: Library):
        self._library, self._numbers = library, count()

    def register(self, binary: Binary) -> int:
        """A stub whose address stands for the kernel; names of stubs must not repeat."""
        data = address_of(binary.data)
        described = _DevBinary(_magic(binary), 0, ctypes.addressof(data), len(binary.data))
        loaded = c_void_p()
        self._library.call("rtDevBinaryRegister", byref(described), byref(loaded))
        stub = c_size_t(0)
        name = f"{binary.name}_{next(self._numbers)}".encode()
        self._library.call("rtFunctionRegister", loaded, byref(stub), name, binary.name.encode(),
                           0)
        _keep_forever(data)
        _keep_forever(stub)
        return ctypes.addressof(stub)

    def launch(self, handle: int, blocks: int, arguments: bytes, stream: int) -> None:
        """Queue a kernel; CANN copies the arguments."""
        self._library.call("rtKernelLaunch", handle, blocks, address_of(arguments),
                           len(arguments), None, stream)


class _OptionValue(Union):
    """aclrtBinaryLoadOptionValue."""

    _fields_ = [("is_lazy", c_uint32), ("magic", c_uint32), ("mode", c_int),
                ("reserved", c_uint32 * 4)]


class _Option(Structure):
    """aclrtBinaryLoadOption."""

    _fields_ = [("type", c_int), ("value", _OptionValue)]


class _Options(Structure):
    """aclrtBinaryLoadOptions."""

    _fields_ = [("options", POINTER(_Option)), ("count", c_size_t)]


class AclrtRoute:
    """aclrtBinaryLoadFromData, aclrtBinaryGetFunction, aclrtLaunchKernelWithHostArgs."""

    name = "aclrt"

    def __init__(self, library: Library):
        self._library = library

    def register(self, binary: Binary) -> int:
        """The function's handle."""
        data = address_of(binary.data)
        option = _Option(_OPTION_MAGIC, _OptionValue(magic=_magic(binary)))
        options = _Options(ctypes.pointer(option), 1)
        loaded = c_void_p()
        self._library.call("aclrtBinaryLoadFromData", data, len(binary.data), byref(options),
                           byref(loaded))
        function = c_void_p()
        self._library.call("aclrtBinaryGetFunction", loaded, binary.name.encode(), byref(function))
        _keep_forever(data)
        return function.value or 0

    def launch(self, handle: int, blocks: int, arguments: bytes, stream: int) -> None:
        """Queue a kernel; CANN copies the arguments."""
        self._library.call("aclrtLaunchKernelWithHostArgs", handle, blocks, stream, None,
                           address_of(arguments), len(arguments), None, 0)
