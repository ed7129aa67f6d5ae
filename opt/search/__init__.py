"""Which config to try next: searches over a pool of valid configs.

`sampler.PoolSampler` is the Optuna sampler; it is not imported here, for measuring children import
this package and need no Optuna.
"""

from __future__ import annotations

from .names import NAMES, Name
from .search import Search

__all__ = ["NAMES", "Name", "Search"]
