"""No driver is ever active: nothing of a card is asked."""

from __future__ import annotations

from typing import Any

from triton.backends.driver import DriverBase


class StubDriver(DriverBase):
    """Never used."""

    @classmethod
    def is_active(cls) -> bool:
        """As on a machine without CANN."""
        return False

    def get_current_target(self) -> Any:
        """Not reached."""
        raise NotImplementedError

    def get_active_torch_device(self) -> Any:
        """Not reached."""
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Not reached."""
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        """Not reached."""
        raise NotImplementedError
