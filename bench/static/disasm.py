"""Instruction classes of a CPU's shared object: is the dot product still in it?"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

_MACHINES = {62: "x86", 183: "aarch64"}          # e_machine of the ELF header
# By mnemonic, then by register: what makes a kernel fast and may silently go missing.
CLASSES = {
    "x86": (("vpdpbusd", r"vpdpbusds?"), ("vdpbf16ps", r"vdpbf16ps"), ("amx", r"tdp\w+"),
            ("pmaddwd", r"v?pmaddwd"),
            ("amx_load", r"tileloadd(?:t1)?"), ("fma", r"vfn?m(?:add|sub)\w+"),
            ("gather", r"v(?:p)?gather\w+"), ("half", r"vcvtph2psx?|vcvtps2phx?"),
            ("call", r"call")),
    "aarch64": (("dot", r"[su]s?dot"), ("mmla", r"(?:bf|[su]s?|f)mmla"), ("sme", r"\w*mopa"),
                ("fma", r"fmla|fmadd|fmls|fmsub"), ("half", r"fcvtl2?|fcvtn2?"),
                ("fmlal", r"fmlal2?|fmlsl2?"), ("call", r"blr?"))}
REGISTERS = {"x86": (("zmm", "zmm"), ("ymm", "ymm")), "aarch64": (("sve", r"\bz\d"),)}
_GNU = {"x86": "x86_64", "aarch64": "aarch64"}
_LINE = re.compile(r"^\s*[0-9a-f]+:\s+(\S+)(.*)$", re.MULTILINE)


def facts(path: Path) -> dict[str, Any]:
    """Instruction count, counts by class, size and opcode hash of a shared object's .text."""
    binary = path.read_bytes()
    machine, code = text_of(binary, str(path))
    instructions = list(_disassemble(machine, code, path))
    names = [name for name, _ in instructions]
    counts = {kind: sum(n for name, n in Counter(names).items() if re.fullmatch(rule, name))
              for kind, rule in CLASSES[machine]}
    wide = {kind: sum(bool(re.search(rule, operands)) for _, operands in instructions)
            for kind, rule in REGISTERS[machine]}
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return {"instructions": len(names), "counts": {**counts, **wide}, "text_bytes": len(code),
            "opcode_hash": digest}


def text_of(binary: bytes, where: str) -> tuple[str, bytes]:
    """The machine and the .text section of a 64-bit little-endian ELF file."""
    if binary[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{where} must be a 64-bit little-endian ELF file")
    number = struct.unpack_from("<H", binary, 18)[0]
    if number not in _MACHINES:
        raise ValueError(f"{where} is for ELF machine {number}; known are {_MACHINES}")
    at, = struct.unpack_from("<Q", binary, 40)
    size, count, names = struct.unpack_from("<HHH", binary, 58)
    sections = [struct.unpack_from("<IIQQQQ", binary, at + i * size) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        end = binary.index(b"\0", strings + name)
        if binary[strings + name:end] == b".text":
            return _MACHINES[number], binary[offset:offset + length]
    raise ValueError(f"{where} has no .text section")


def _disassemble(machine: str, code: bytes, path: Path) -> Iterator[tuple[str, str]]:
    try:
        import capstone
    except ModuleNotFoundError:
        yield from _objdump(machine, path)
        return
    kind = ((capstone.CS_ARCH_X86, capstone.CS_MODE_64) if machine == "x86"
            else (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM))
    engine, at = capstone.Cs(*kind), 0
    while at < len(code):            # it stops at what it does not know: padding, or newer code
        for address, size, name, operands in engine.disasm_lite(code[at:], at):
            at = address + size
            yield name, operands
        if at < len(code):
            size, name = newer(code[at:at + 16]) if machine == "x86" else (4, "")
            at += size
            if name:
                yield name, "zmm" if code[at - size] == 0x62 else "tmm"


# Of x86: what capstone 5 does not know. (prefix byte, opcode map, pp, opcode) -> name
_NEWER = {(0xC4, 2, 3, 0x5E): "tdpbssd", (0xC4, 2, 2, 0x5E): "tdpbsud", (0xC4, 2, 1, 0x5E):
          "tdpbusd", (0xC4, 2, 0, 0x5E): "tdpbuud", (0xC4, 2, 2, 0x5C): "tdpbf16ps",
          (0xC4, 2, 3, 0x4B): "tileloadd", (0xC4, 2, 1, 0x4B): "tileloaddt1",
          (0xC4, 2, 2, 0x4B): "tilestored", (0xC4, 2, 3, 0x49): "tilezero",
          (0xC4, 2, 0, 0x49): "ldtilecfg", (0x62, 2, 2, 0x52): "vdpbf16ps",
          (0x62, 2, 2, 0x72): "vcvtneps2bf16", (0x62, 2, 3, 0x72): "vcvtne2ps2bf16"}


def newer(code: bytes) -> tuple[int, str]:
    """Length and name of an AMX or AVX512-BF16 instruction; (1, "") if it is none of them.

    VEX and EVEX prefixes as in Intel's manual, volume 2A, 2.3.5 and 2.7.1.
    """
    prefix = {0xC4: 3, 0x62: 4}.get(code[0], 0)
    if not prefix or len(code) < prefix + 2:
        return 1, ""
    name = _NEWER.get((code[0], code[1] & 7, code[2] & 3, code[prefix]), "")
    if not name:
        return 1, ""
    mode, base = code[prefix + 1] >> 6, code[prefix + 1] & 7
    if mode == 3 and name == "ldtilecfg":
        name = "tilerelease"
    size = prefix + 2                # opcode and ModRM
    if mode != 3 and base == 4:      # a SIB byte, and its displacement without a base
        size += 1 + (4 if mode == 0 and code[prefix + 2] & 7 == 5 else 0)
    elif mode == 0 and base == 5:
        size += 4                    # relative to the instruction
    return size + {1: 1, 2: 4}.get(mode, 0), name


def _objdump(machine: str, path: Path) -> Iterator[tuple[str, str]]:
    program = next((p for p in (f"{_GNU[machine]}-linux-gnu-objdump", "objdump") if which(p)), None)
    if program is None:
        raise ValueError("to read a CPU kernel's instructions install capstone (pip install "
                         "'expertile[bench]') or binutils (apt-get install binutils)")
    done = subprocess.run([program, "-d", "-j", ".text", "--no-show-raw-insn", str(path)],
                          capture_output=True, text=True, check=True)
    yield from ((name, rest) for name, rest in _LINE.findall(done.stdout))
