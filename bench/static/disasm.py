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
            ("fma", r"vfn?m(?:add|sub)\w+"), ("gather", r"v(?:p)?gather\w+"),
            ("half", r"vcvtph2psx?|vcvtps2phx?"), ("call", r"call")),
    "aarch64": (("dot", r"[su]s?dot"), ("mmla", r"(?:bf|[su]s?|f)mmla"), ("sme", r"\w*mopa"),
                ("fma", r"fmla|fmadd|fmls|fmsub"), ("call", r"blr?"))}
REGISTERS = {"x86": (("zmm", "zmm"), ("ymm", "ymm")), "aarch64": (("sve", r"\bz\d"),)}
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
        yield from _objdump(path)
        return
    kind = ((capstone.CS_ARCH_X86, capstone.CS_MODE_64) if machine == "x86"
            else (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM))
    engine = capstone.Cs(*kind)
    engine.skipdata = True           # padding between functions is not always code
    for _, _, name, operands in engine.disasm_lite(code, 0):
        if not name.startswith("."):
            yield name, operands


def _objdump(path: Path) -> Iterator[tuple[str, str]]:
    if which("objdump") is None:
        raise ValueError("to read a CPU kernel's instructions install capstone (pip install "
                         "'expertile[bench]') or binutils (apt-get install binutils)")
    done = subprocess.run(["objdump", "-d", "-j", ".text", "--no-show-raw-insn", str(path)],
                          capture_output=True, text=True, check=True)
    yield from ((name, rest) for name, rest in _LINE.findall(done.stdout))
