"""What is known of a maker's chips without its software."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..base import Figure, Fp8


@dataclass(frozen=True)
class Chip:
    """One architecture. A figure that no source gives is absent: nothing is guessed."""

    arch: str                        # the maker's prefix and what its Triton driver says: "mp_31"
    warp_size: int
    fp8: Fp8
    products: tuple[str, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Vendor:
    """A family of chips behind one Triton backend. The first chip answers for the family."""

    name: str                        # of the target
    maker: str
    backend: str                     # GPUTarget.backend of its Triton
    torch_module: str                # what teaches torch the device; "" where torch itself does
    torch_device: str                # type of the tensors
    prefix: str                      # before the driver's architecture
    install: str                     # what has to be installed, from where
    chips: tuple[Chip, ...]
    shares_backend: bool = False     # another target has the backend too: only these chips are ours

    def find(self, unit: str) -> Chip:
        """The chip called "mp_31", "31", or by a product's name; the first one for ""."""
        wanted = unit.lower().replace("_", " ").replace("-", " ").strip()
        for chip in self.chips:
            names = (chip.arch, chip.arch.removeprefix(self.prefix), *chip.products)
            if not wanted or wanted in {
                    n.lower().replace("_", " ").replace("-", " ") for n in names}:
                return chip
        known = ", ".join(name for c in self.chips for name in (c.arch, *c.products))
        raise ValueError(f"{self.name}:UNIT must be one of {known}, got {unit!r}")

    def knows(self, name: str) -> bool:
        """Whether a bare name means one of these chips; numbers alone do not."""
        try:
            return bool(name) and not name.isdigit() and bool(self.find(name))
        except ValueError:
            return False
