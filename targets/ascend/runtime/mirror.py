"""Copies of a launch's tensors on the card, for a process whose tensors are not there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from .library import AclError
from .npu import Npu


class Mirror:
    """Every storage among the arguments, copied once; views of one stay views of one copy."""

    def __init__(self, npu: Npu, args: Sequence[Any]):
        self._npu, self._args = npu, args
        self._copies: dict[int, int] = {}        # storage here -> its copy on the card
        self.own: list[int] = []                 # the kernel's arguments: addresses and scalars
        try:
            for a in args:
                self.own.append(self._copied(a) if isinstance(a, Tensor) else int(a))
        except AclError:
            self.close()
            raise

    def _copied(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        here = storage.data_ptr()
        if here not in self._copies:
            self._copies[here] = self._npu.allocate(storage.nbytes())
            if storage.nbytes():
                self._npu.upload(self._copies[here], here, storage.nbytes())
        return self._copies[here] + (tensor.data_ptr() - here if tensor.numel() else 0)

    def fetch(self, written: Sequence[int]) -> None:
        """Copy back the arguments at these places."""
        for i in written:
            if size := self._args[i].nbytes:
                self._npu.download(self._args[i].data_ptr(), self.own[i], size)

    def close(self) -> None:
        """Give the copies back, on a card that may have failed."""
        for copy in self._copies.values():
            with suppress(AclError):             # what failed before this is what counts
                self._npu.free(copy)
        self._copies = {}
