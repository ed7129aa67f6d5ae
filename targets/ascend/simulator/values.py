"""The values of a function while it is walked, and how literals are read."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .parse import Evaluate

_CONSTANT = re.compile(r"(true|false|0x[0-9A-F]+|[-+.\deE]+)(?: : (\w+))?")


class Values:
    """The values of a function by name, and the module's affine maps."""

    def __init__(self, maps: Mapping[str, Evaluate], start: Mapping[str, Any]):
        self._maps, self._values = maps, dict(start)

    def __getitem__(self, name: str) -> Any:
        """A value, or a number that is written out."""
        return self._values[name] if name.startswith("%") else int(name)

    def set(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Name results."""
        self._values.update(zip(names, values, strict=True))

    def apply(self, name: str, operands: Sequence[str]) -> tuple[int, ...]:
        """An affine map's results."""
        return self._maps[name]([self[o] for o in operands])


def operands_of(text: str) -> list[str]:
    """The names before the types."""
    return re.findall(r"%[\w#-]+", text.split(" : ")[0])


def constant_of(text: str) -> float:
    """A literal, as in "0x7F800000 : f32" or "true"."""
    match = _CONSTANT.match(text)
    assert match is not None, text
    literal, dtype = match[1], match[2] or "i1"
    if literal in ("true", "false"):
        return literal == "true"
    if dtype[0] in "fb":             # f16, f32, bf16; hexadecimal is the bit pattern
        if not literal.startswith("0x"):
            return float(literal)
        bits = int(literal, 16)
        if dtype == "f16":
            return float(struct.unpack("<e", struct.pack("<H", bits))[0])
        return float(struct.unpack("<f", struct.pack("<I", bits << (16 if dtype == "bf16" else 0)
                                                     ))[0])
    return int(literal, 0)
