"""Decode steps captured once per batch size and context width, then replayed without Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .batch import Absorbed, Batch
from .cache import LatentCache
from .transformer import Transformer

log = logging.getLogger("expertile")

Step = Callable[[], None]            # reads and writes buffers whose addresses stay
Capture = Callable[[Step], Step]     # a step -> what repeats it

_MOST_ROWS = 512                     # a larger step takes long enough to hide its launches (vLLM)
_LEAST_PAGES = 8                     # narrower tables would be captured anew at 1, 2, 4 pages
_WARM_UPS = 2                        # runs on the capturing stream before it captures
# A row that is not there reads nothing, writes nowhere and attends to nothing:
# ids, positions, slots, block_table, cache_seqlens.
_PADDING = (0, 0, -1, -1, 0)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and multiples of 16 up to max_batch, and max_batch itself (as nano-vllm)."""
    most = min(max_batch, _MOST_ROWS)
    return (*(n for n in (1, 2, 4, 8, *range(16, most, 16)) if n < most), most)


class CudaCapture:
    """Captures into CUDA graphs that share one memory pool: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Step) -> Step:
        """Run a step to warm up, then record it; what comes back launches the record."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                step()
        except RuntimeError as e:
            raise RuntimeError("the decode step could not be captured in a CUDA graph (an operator "
                               "waits for the device or allocates outside torch); LLM(graphs=False)"
                               " or --no-graphs runs without") from e
        replay: Step = graph.replay
        return replay


@dataclass(frozen=True)
class _Inputs:
    """The static inputs of a captured step, and their pinned twins on the host."""

    host: Batch
    batch: Batch

    @staticmethod
    def make(rows: int, width: int, device: torch.device) -> _Inputs:
        """Padding rows only."""
        pin = device.type == "cuda"
        ids, positions, slots = (torch.full((rows,), value, pin_memory=pin)
                                 for value in _PADDING[:3])
        table, lens = (torch.full(shape, value, dtype=torch.int32, pin_memory=pin)
                       for shape, value in zip(((rows, width), (rows,)), _PADDING[3:], strict=True))
        host = Batch(ids, positions, slots, torch.arange(rows), Absorbed(1, table, lens))
        return _Inputs(host, host.to(device))

    def load(self, given: Batch) -> None:
        """Put a step's rows first; padding follows.

        The twins are free to be written: whoever asked for the last step has read its tokens.
        """
        for host, static, new, value in zip(_tensors(self.host), _tensors(self.batch),
                                            _tensors(given), _PADDING, strict=True):
            host.fill_(value)
            host[tuple(slice(n) for n in new.shape)] = new
            if static is not host:
                static.copy_(host, non_blocking=True)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    assert isinstance(batch.mla, Absorbed)
    return (batch.ids, batch.positions, batch.slots, batch.mla.block_table,
            batch.mla.cache_seqlens)


class DecodeGraphs:
    """The captured decode steps of one model and cache.

    Args:
        model, cache: what a step computes with; a cache whose storage has moved is captured anew.
        max_batch: sequences of the largest captured step.
        report: the runtime's rows; an operator that is answered by the torch reference reads data
            on the host, so that its step is not captured.
        new_capture: makes the capture function, once for each storage of the cache.
    """

    def __init__(self, model: Transformer, cache: LatentCache, max_batch: int,
                 report: Callable[[], Sequence[Mapping[str, Any]]],
                 new_capture: Callable[[], Capture] = CudaCapture):
        self.model = model
        self.cache = cache
        self.sizes = batch_sizes(max_batch)
        self._report = report
        self._new_capture = new_capture
        self._capture: Capture | None = None
        self._steps: dict[tuple[int, int], tuple[_Inputs, Step]] = {}
        self._storage = cache.storage
        self._out: Tensor | None = None
        self._off = False

    def logits(self, batch: Batch) -> Tensor | None:
        """Logits [B, V] of a decode step, valid until the next; None where it must run eagerly.

        batch: on the host, as make_batch gives it.
        """
        rows, mla = len(batch.ids), batch.mla
        if self._off or batch.on_route is not None or not isinstance(mla, Absorbed) or (
                mla.s_q != 1 or not 0 < rows == len(batch.last_rows) <= self.sizes[-1]):
            return None
        if self._storage is not self.cache.storage:  # the graphs point into memory that is gone
            self._storage, self._capture = self.cache.storage, None
            self._steps.clear()
        key = (next(n for n in self.sizes if n >= rows), max(mla.block_table.shape[1],
                                                             _LEAST_PAGES))
        if key not in self._steps and not self._add(*key):
            return None
        inputs, replay = self._steps[key]
        inputs.load(batch)
        replay()
        assert self._out is not None
        return self._out.narrow(0, 0, rows)

    def _add(self, rows: int, width: int) -> bool:
        """Capture a step on padding rows, which leave the cache as it is; False if it cannot be."""
        device, vocab = self._storage.device, self.model.config.vocab_size
        inputs = _Inputs.make(rows, width, device)
        if self._out is None:        # one for all: a step's logits are read before the next step
            self._out = torch.empty(self.sizes[-1], vocab, device=device)
        out = self._out.narrow(0, 0, rows)

        def step() -> None:
            batch = replace(inputs.batch, absent=inputs.batch.slots < 0)
            out.copy_(self.model.logits(self.model.hidden(batch, self.cache)))

        before = self._reference_calls()
        step()                       # compiles and loads what is not yet
        slow = {op for op, calls in self._reference_calls().items() if calls > before.get(op, 0)}
        if slow:
            log.warning("decode runs without CUDA graphs: %s answered by the torch reference, "
                        "which reads data on the host", ", ".join(sorted(slow)))
            self._off = True
            return False
        self._capture = self._capture or self._new_capture()
        self._steps[rows, width] = inputs, self._capture(step)
        return True

    def _reference_calls(self) -> dict[str, int]:
        calls: dict[str, int] = {}
        for row in self._report():
            if row["answered_by"] == "reference":
                calls[row["op"]] = calls.get(row["op"], 0) + row["calls"]
        return calls
