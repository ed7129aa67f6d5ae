"""A search that proposes what somebody has listed, in that order: the candidates of a bundle."""

from __future__ import annotations

from collections.abc import Iterable

from ...ops.space import Config, config_text
from ..pool import Pool
from .search import Search


class Listed(Search):
    """Asks for the listed configs of a pool, each once, whatever it is told."""

    def __init__(self, pool: Pool, configs: Iterable[Config]):
        texts = dict.fromkeys(config_text(c) for c in configs)
        self._pool = pool
        self._left = [t for t in texts if t in pool.index]
        self._seen = set()

    def ask(self) -> Config | None:
        """The next one, or None."""
        while self._left:
            i = self._pool.index[self._left.pop(0)]
            if i not in self._seen:
                self._seen.add(i)
                return self._pool.configs[i]
        return None

    def room(self) -> int:
        """How many are left."""
        return len(self._left)

    def is_done_within(self, gain: float) -> bool:
        """There is no model to ask."""
        return False

    def tell(self, config: Config, log_ratio: float | None) -> None:
        """That it was tried."""
        self._seen.add(self._pool.index[config_text(config)])
