"""Where a model stands: its device, the dtypes of weights and activations, the cache's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cache import LatentCache
from .config import ModelConfig

_DTYPES = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Of the memory that the weights leave; the rest is for activations and captured graphs. (vLLM
# takes 0.9 of all memory, less what a trial run used; we make no trial run.)
_CACHE_SHARE = 0.8


@dataclass(frozen=True)
class Placement:
    """A device and what is computed and stored there."""

    device: torch.device
    act_dtype: torch.dtype           # activations and cache
    weight_dtype: torch.dtype | None  # plain weights, None = as in the checkpoint
    graphs: bool                     # decode is captured


def place(device: str, dtype: str | torch.dtype | None, act_dtype: str | torch.dtype | None,
          graphs: bool | None) -> Placement:
    """Fill in what a device does by default; ValueError for what it cannot do.

    CPUs compute in float32 (bfloat16 is storage there), other devices in bfloat16, and store plain
    weights no wider than that unless told to. Graphs are captured on CUDA devices.
    """
    wanted, acts = _dtype("dtype", dtype), _dtype("act_dtype", act_dtype)
    where = _reachable(device)
    if graphs and where.type != "cuda":
        raise ValueError(f"graphs need a CUDA device, got device={device!r}; leave graphs out")
    acts = acts or (torch.float32 if where.type == "cpu" else torch.bfloat16)
    return Placement(where, acts, wanted or (None if acts == torch.float32 else acts),
                     where.type == "cuda" if graphs is None else graphs)


def new_cache(at: Placement, config: ModelConfig, page_size: int, max_tokens: int | None,
              max_batch: int) -> LatentCache:
    """The cache: growing on CPUs, of a fixed size where captured graphs keep its address.

    To be called when the weights are loaded. The fixed size is max_tokens, or else what max_batch
    sequences of full length can need as far as the free memory goes.
    """
    fixed = at.device.type == "cuda"
    if fixed and max_tokens is None:
        torch.cuda.empty_cache()     # what loading used, so that the driver counts it as free
        free, _ = torch.cuda.mem_get_info(at.device)
        max_tokens = tokens_that_fit(
            free, config.num_layers * config.latent_dim * at.act_dtype.itemsize,
            max_batch * config.max_positions, page_size)
    return LatentCache(config.num_layers, config.latent_dim, page_size, max_tokens, at.act_dtype,
                       at.device, fixed)


def tokens_that_fit(free: int, token_bytes: int, wanted: int, page_size: int) -> int:
    """Whole pages of tokens: those wanted, or as many as a share of the free bytes holds."""
    pages = min(-(-wanted // page_size), int(free * _CACHE_SHARE) // (token_bytes * page_size))
    return pages * page_size


def _dtype(argument: str, value: str | torch.dtype | None) -> torch.dtype | None:
    name = str(value).removeprefix("torch.") if value is not None else None
    if name not in _DTYPES:
        raise ValueError(f"{argument} must be 'float32', 'bfloat16' or None, got {value!r}")
    return _DTYPES[name]


def _reachable(device: str) -> torch.device:
    """A device that torch can use here, tried once."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as e:      # torch's answers to a device it cannot reach
        why = " ".join(str(e).split())               # some run over several lines
        raise ValueError(f"device {device!r} cannot be used by this torch: {why}") from e
