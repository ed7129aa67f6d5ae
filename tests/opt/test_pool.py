"""The search: valid configs only, none twice, all of them when the pool is small."""

from __future__ import annotations

import pytest

from expertile.ops.space import Config, Space, config_text
from expertile.opt.pool import Pool, Search

SPACE = Space({"a": (1, 2, 4, 8), "b": (True, False), "c": ("x", "y", "z"), "one": (5,),
               "d": tuple(range(6))}, lambda c: int(c["a"]) * int(c["d"]) <= 20)


def _time(config: Config) -> float:
    return abs(int(config["a"]) - 4) + int(config["d"]) / 2 + (config["c"] != "y") + 0.1


@pytest.mark.parametrize("exhaustive", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_valid_config_once(exhaustive: bool, seed: int) -> None:
    pool = Pool(SPACE)
    search, seen = Search(pool, seed, exhaustive=exhaustive), []
    while (config := search.ask()) is not None:
        assert SPACE.why_not(config) is None
        seen.append(config_text(config))
        search.tell(config, None if config["a"] == 8 else _time(config))
    assert len(set(seen)) == len(seen) == len(pool) == len(list(SPACE))
    assert seen[0] == config_text(SPACE.default())


def test_seeds_come_right_after_the_default_and_strangers_are_ignored() -> None:
    seeds = [{"a": 4, "b": False, "c": "z", "one": 5, "d": 3}, {"a": 99}]
    search = Search(Pool(SPACE), 0, seeds)
    assert [search.ask() for _ in range(2)] == [SPACE.default(), seeds[0]]


def test_the_model_finds_the_best_sooner_than_chance() -> None:
    pool, ranks = Pool(SPACE), []
    best = min(_time(c) for c in pool.configs)
    for seed in range(6):
        search, tried = Search(pool, seed), list[float]()
        while best not in tried:
            config = search.ask()
            assert config is not None
            tried.append(_time(config))
            search.tell(config, tried[-1])
        ranks.append(len(tried))
    optima = sum(_time(c) == best for c in pool.configs)
    by_chance = (len(pool) + 1) / (optima + 1)
    assert sorted(ranks)[len(ranks) // 2] < by_chance


def test_batches_are_asked_before_they_are_told() -> None:
    search, pool = Search(Pool(SPACE), 0), Pool(SPACE)
    for config in [search.ask() for _ in range(20)]:
        assert config is not None
        search.tell(config, _time(config))
    batch = [search.ask() for _ in range(8)]
    assert len({config_text(c) for c in batch if c is not None}) == 8
    assert len(pool) > 28


def test_space_with_one_config() -> None:
    search = Search(Pool(Space({"a": (1,)})), 0)
    config = search.ask()
    assert config == {"a": 1}
    search.tell(config, 0.0)
    assert search.ask() is None
