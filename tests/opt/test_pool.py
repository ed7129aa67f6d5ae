"""The pool: valid configs only, in an order that means something, and the nearest of them."""

from __future__ import annotations

import numpy as np
import pytest

from expertile.ops.space import Space, config_text
from expertile.opt import pool as pools
from expertile.opt.pool import Pool

SPACE = Space({"a": (2, 8, 1, 4), "b": (True, False), "c": ("x", "y", "z"), "one": (5,),
               "d": tuple(range(6))}, lambda c: int(c["a"]) * int(c["d"]) <= 20)


def test_exactly_the_valid_configs_default_first() -> None:
    pool = Pool(SPACE)
    assert pool.configs == list(SPACE) and pool.configs[0] == SPACE.default()
    assert all(pool.index[config_text(c)] == i for i, c in enumerate(pool.configs))
    assert len(pool.by_place) == len(pool) == 4 * 6 * 6 - 6 * 3


def test_numbers_are_ordered_by_size_and_words_are_not() -> None:
    pool = Pool(SPACE)
    assert pool.knobs == {"a": (1, 2, 4, 8), "b": (True, False), "c": ("x", "y", "z"),
                          "d": tuple(range(6))}
    assert pool.place({"a": 8, "b": False, "c": "y", "one": 5, "d": 2}) == [3, 1, 1, 2]
    assert pool.rows.min() == 0.0 and pool.rows.max() == 1.0


def test_nearest_is_what_a_search_over_all_says() -> None:
    pool, rng = Pool(SPACE), np.random.default_rng(0)
    wanted = rng.integers(pool.sizes, size=(40, 4))
    taken = rng.random(len(pool)) < 0.5
    for row, got in zip(wanted, pool.nearest(wanted, taken), strict=True):
        distance = np.abs(pool.rows - row / (pool.sizes - 1)).sum(axis=1)
        assert not taken[got] and distance[got] == pytest.approx(distance[~taken].min())
    valid = pool.nearest(pool.places)
    assert valid.tolist() == list(range(len(pool)))


@pytest.mark.parametrize("product", [10_000, 10])
def test_a_huge_space_is_sampled_and_keeps_its_default(
        monkeypatch: pytest.MonkeyPatch, product: int) -> None:
    monkeypatch.setattr(pools, "MAX_POOL", 30)
    monkeypatch.setattr(pools, "MAX_PRODUCT", product)
    pool = Pool(SPACE)
    assert len(pool) == len(pool.index) == (30 if product == 10_000 else len(pool)) > 1
    assert pool.configs[0] == SPACE.default()
    assert all(SPACE.why_not(c) is None for c in pool.configs)
    assert pool.configs == Pool(SPACE).configs


def test_a_space_of_one_config() -> None:
    pool = Pool(Space({"a": (1,)}))
    assert pool.configs == [{"a": 1}] and pool.knobs == {}
