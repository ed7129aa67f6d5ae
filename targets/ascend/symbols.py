"""Gate d: every library function that a kernel calls is defined in the compiler's bitcode.

Only the symbol table in the file is read (llvm/Object/IRSymtab.h, version 3, and the bitstream
format of LLVM's BitCodeFormat.rst), so no LLVM is needed and the vendor's own dialect of LLVM 15,
which LLVM 19 cannot load, does not matter.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from .artifact import Artifact
from .compiler import tool_path
from .devices import Device, Family

_SYMTAB_BLOCK, _STRTAB_BLOCK = 25, 23
_ENTER_SUBBLOCK, _DEFINE_ABBREV = 1, 2
_BLOB = 5                            # the encoding of an abbreviation's operand
_VERSION = 3                         # of IRSymtab's layout; LLVM 15 writes 3
_SYMBOL_WORDS = 6                    # name, IR name (offset and size each), comdat, flags
_UNDEFINED = 1 << 3                  # flag: two bits of visibility, then has_uncommon


class _Bits:
    """Reads little-endian bit fields of a bitstream."""

    def __init__(self, data: bytes, start: int = 0):
        self._data = data
        self.at = start              # in bits

    def fixed(self, width: int) -> int:
        """The next `width` bits."""
        first = self.at // 8
        word = int.from_bytes(self._data[first:first + 8], "little")
        value = (word >> self.at % 8) & ((1 << width) - 1)
        self.at += width
        return value

    def vbr(self, width: int) -> int:
        """A number in chunks of `width` bits whose top bit says that more follow."""
        value, shift, more = 0, 0, 1
        while more:
            chunk = self.fixed(width)
            more = chunk >> (width - 1)
            value |= (chunk & ((1 << (width - 1)) - 1)) << shift
            shift += width - 1
        return value

    def align(self) -> None:
        """Go on at the next 32-bit word."""
        self.at = (self.at + 31) // 32 * 32


def _top_blocks(data: bytes) -> dict[int, tuple[int, int]]:
    """Block id -> (byte where its content starts, width of its abbreviation ids)."""
    if data[:4] != b"BC\xc0\xde":
        raise ValueError("not an LLVM bitcode file: the first bytes must be 'BC' 0xC0DE")
    bits, found = _Bits(data, 32), {}
    while bits.at // 8 + 8 <= len(data):
        if bits.fixed(2) != _ENTER_SUBBLOCK:
            raise ValueError(f"a block must start at byte {bits.at // 8} of the bitcode")
        block, width = bits.vbr(8), bits.vbr(4)
        bits.align()
        words = bits.fixed(32)
        found[block] = (bits.at // 8, width)
        bits.at += 32 * words
    return found


def _blob(data: bytes, start: int, width: int) -> bytes:
    """The one blob of a block that defines one abbreviation and has one record."""
    bits = _Bits(data, 8 * start)
    if bits.fixed(width) != _DEFINE_ABBREV:
        raise ValueError("a symbol table block must define its abbreviation first")
    for _ in range(bits.vbr(5)):
        if bits.fixed(1):            # a literal
            bits.vbr(8)
        elif bits.fixed(3) != _BLOB:
            raise ValueError("a symbol table block must hold a blob")
    bits.fixed(width)                # the abbreviation's id
    size = bits.vbr(6)
    bits.align()
    return data[bits.at // 8:bits.at // 8 + size]


def defined_symbols(path: Path) -> frozenset[str]:
    """The names that a bitcode file defines."""
    data = path.read_bytes()
    blocks = _top_blocks(data)
    if not {_SYMTAB_BLOCK, _STRTAB_BLOCK} <= blocks.keys():
        raise ValueError(f"{path.name} has no symbol table")
    table, strings = (_blob(data, *blocks[b]) for b in (_SYMTAB_BLOCK, _STRTAB_BLOCK))
    header = struct.unpack_from("<9I", table)
    if header[0] != _VERSION:
        raise ValueError(f"{path.name} has a symbol table of version {header[0]}, not {_VERSION}")
    begin, count = header[7:9]       # after version, producer, modules and comdats
    words = struct.unpack_from(f"<{count * _SYMBOL_WORDS}I", table, begin)
    names = set()
    for i in range(0, len(words), _SYMBOL_WORDS):
        at, size, flags = words[i], words[i + 1], words[i + 5]
        if not flags & _UNDEFINED:
            names.add(strings[at:at + size].decode())
    return frozenset(names)


@cache
def library_symbols(family: Family, core: str) -> frozenset[str]:
    """What the device library defines for the cores "AIC" or "AIV" of a family."""
    compiler = tool_path("bishengir-compile")
    if compiler is None:
        raise ValueError("the compiler's library is not installed; run: "
                         "pip install 'expertile[ascend]'")
    library = compiler.parent.parent / "lib"
    return frozenset().union(*(
        defined_symbols(library / f"meta_op.{mix}{core.lower()}.{family}.bc")
        for mix in ("", "mix.")))


def missing_symbols(artifact: Artifact, device: Device) -> tuple[str, ...]:
    """The called library functions that no bitcode of the device's family defines."""
    return tuple(sorted(name for name, core in artifact.calls.items()
                        if f"_mlir_ciface_{name}" not in library_symbols(device.family, core)))
