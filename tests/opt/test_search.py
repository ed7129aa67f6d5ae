"""The searches: none repeats, each beats chance by far, and the same seed says the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from expertile.ops.space import Config, Space, config_text
from expertile.opt.pool import Pool
from expertile.opt.search import NAMES, Search
from expertile.opt.search.names import Name
from expertile.opt.search.sampler import RANDOM_FIRST, PoolSampler

GUIDED: tuple[Name, ...] = ("portfolio", "tpe", "gp", "ga")
SPACE = Space({"a": (1, 2, 4, 8), "b": (True, False), "c": ("x", "y", "z"), "one": (5,),
               "d": tuple(range(6))}, lambda c: int(c["a"]) * int(c["d"]) <= 20)


def small(config: Config) -> float:
    return abs(int(config["a"]) - 4) + int(config["d"]) / 2 + (config["c"] != "y") + 0.1


# Like a tiled matrix product: limits that cut the product, a narrow optimum, failures beside it.
TILES = Space({"m": (16, 32, 64, 128, 256), "n": (16, 32, 64, 128, 256), "k": (16, 32, 64, 128),
               "warps": (1, 2, 4, 8), "stages": (1, 2, 3, 4, 5), "swap": (False, True)},
              lambda c: (int(c["m"]) + int(c["n"])) * int(c["k"]) * int(c["stages"]) <= 60_000
              and int(c["m"]) * int(c["n"]) >= 256 * int(c["warps"]))


def tiles(c: Config) -> float | None:
    """Microseconds; None: it fails."""
    m, n, k, w, s = (int(c[name]) for name in ("m", "n", "k", "warps", "stages"))
    if m * n > 16_384 and w == 1:
        return None
    us = 100 * (1 + 0.25 * abs(math.log2(m / 128)) + 0.2 * abs(math.log2(n / 64)))
    us *= 1 + 0.15 * abs(math.log2(k / 64)) + 0.12 * abs(s - 3)
    us *= 1 + 0.2 * abs(math.log2(m * n / (w * 2048)))
    return us * (1.15 if c["swap"] == (m >= n) else 1.0)


def play(pool: Pool, name: Name, seed: int, budget: int,
         time_of: Callable[[Config], float | None]) -> list[str]:
    search, tried = Search(pool, seed, sampler=name, budget=budget), []
    while len(tried) < budget and (config := search.ask()) is not None:
        tried.append(config_text(config))
        us = time_of(config)
        search.tell(config, None if us is None else math.log(us))
    return tried


@pytest.mark.parametrize("name", NAMES)
def test_every_valid_config_once(name: Name) -> None:
    pool = Pool(SPACE)
    tried = play(pool, name, 1, 10_000, lambda c: None if c["a"] == 8 else small(c))
    assert sorted(tried) == sorted(pool.index) and tried[0] == config_text(SPACE.default())


@pytest.mark.parametrize("name", NAMES)
def test_all_failing_ends_too(name: Name) -> None:
    assert len(set(play(Pool(SPACE), name, 0, 60, lambda c: None))) == 60


@pytest.mark.parametrize("name", GUIDED)
def test_guided_searches_find_the_best_far_sooner_than_chance(name: Name) -> None:
    pool = Pool(TILES)
    times = {config_text(c): us for c in pool.configs if (us := tiles(c)) is not None}
    good = {text for text, us in times.items() if us <= 1.05 * min(times.values())}
    by_chance = (len(pool) + 1) / (len(good) + 1)
    needed = []
    for seed in range(5):
        tried = play(pool, name, seed, 300 if name == "ga" else 120, tiles)
        needed.append(next((i for i, text in enumerate(tried) if text in good), 10_000))
    assert sorted(needed)[2] < 0.6 * by_chance, (needed, by_chance)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_says_the_same(name: Name) -> None:
    pool = Pool(TILES)
    runs = [play(pool, name, seed, 60, tiles) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_seeds_come_right_after_the_default_then_random_ones() -> None:
    pool = Pool(TILES)
    seeds = [dict(pool.configs[40]), {"m": 99}, dict(pool.configs[7])]
    search = Search(pool, 0, seeds, sampler="portfolio")
    assert [search.ask() for _ in range(3)] == [pool.configs[i] for i in (0, 40, 7)]
    random = [search.ask() for _ in range(RANDOM_FIRST)]
    places = np.array([pool.place(c) for c in random if c is not None])
    assert len(places) == RANDOM_FIRST and (places.std(axis=0) > 0).all()


def test_auto_tries_all_when_they_fit_and_else_searches() -> None:
    pool = Pool(SPACE)
    assert play(pool, "auto", 5, len(pool), small) == play(pool, "exhaustive", 5, len(pool), small)
    assert play(pool, "auto", 5, 60, small) == play(pool, "portfolio", 5, 60, small)


def test_what_an_earlier_tune_told_is_known_and_not_asked() -> None:
    pool = Pool(TILES)
    search = Search(pool, 0, sampler="portfolio")
    before = [config_text(c) for c in pool.configs[:100]]
    for config in pool.configs[:100]:
        us = tiles(config)
        search.tell(config, None if us is None else math.log(us))
    asked = [search.ask() for _ in range(30)]
    texts = {config_text(c) for c in asked if c is not None}
    assert len(texts) == 30 and not texts & set(before)


@pytest.mark.parametrize("name", GUIDED)
def test_batches_are_asked_before_they_are_told(name: Name) -> None:
    search = Search(Pool(TILES), 0, sampler=name)
    for _ in range(3):
        batch = [c for _ in range(10) if (c := search.ask()) is not None]
        assert len({config_text(c) for c in batch}) == 10
        for config in batch:
            search.tell(config, tiles(config))


def test_space_with_one_config() -> None:
    search = Search(Pool(Space({"a": (1,)})), 0)
    config = search.ask()
    assert config == {"a": 1}
    search.tell(config, 0.0)
    assert search.ask() is None


def test_a_study_of_optuna_uses_it_as_any_sampler(tmp_path: Path) -> None:
    pool = Pool(TILES)
    study = optuna.create_study(sampler=PoolSampler(pool, "portfolio", 30),
                                storage=f"sqlite:///{tmp_path / 'study.sqlite'}")

    def objective(trial: optuna.Trial) -> float:
        config = {k: trial.suggest_categorical(k, v) for k, v in pool.knobs.items()}
        us = tiles(config)
        if us is None:
            raise optuna.TrialPruned
        return us

    study.enqueue_trial(pool.configs[33])
    study.optimize(objective, n_trials=22)
    tried = [config_text(t.params) for t in study.trials]
    assert len(set(tried)) == 22 and set(tried) <= set(pool.index)
    assert tried[:2] == [config_text(pool.configs[33]), config_text(pool.configs[0])]
    importance = optuna.importance.get_param_importances(study)
    assert set(importance) == set(pool.knobs)
    again = optuna.load_study(study_name=study.study_name, storage=study._storage,
                              sampler=PoolSampler(pool, "portfolio", 30, seed=9))
    again.optimize(objective, n_trials=4)
    assert len({config_text(t.params) for t in again.trials}) == 26


def test_threads_of_a_study_share_it() -> None:
    pool = Pool(TILES)
    study = optuna.create_study(sampler=PoolSampler(pool, "portfolio", 60))
    study.optimize(lambda t: float(sum(hash(t.suggest_categorical(k, v)) % 7 + 1
                                       for k, v in pool.knobs.items())), n_trials=60, n_jobs=4)
    assert len({config_text(t.params) for t in study.trials}) == 60


def test_optimize_stops_when_the_pool_is_done() -> None:
    pool = Pool(Space({"a": (1, 2, 3), "b": (1, 2, 3)}, lambda c: c["a"] != c["b"] or c["a"] == 1))
    study = optuna.create_study(sampler=PoolSampler(pool))
    study.optimize(lambda t: float(sum(t.suggest_categorical(k, v)
                                       for k, v in pool.knobs.items())), n_trials=50)
    assert len(study.trials) == len(pool) == 7
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    with pytest.raises(RuntimeError, match="every one of the 7 configs"):
        study.ask(pool.distributions)


def test_overhead_stays_small_up_to_a_thousand_trials() -> None:
    knobs = {f"k{i}": tuple(range(6)) for i in range(6)}
    pool = Pool(Space(knobs, lambda c: sum(int(v) for v in c.values()) % 3 == 0))
    assert len(pool) > 15_000
    search, start = Search(pool, 0, sampler="portfolio", budget=1000), time.process_time()
    for _ in range(1000):
        config = search.ask()
        assert config is not None
        search.tell(config, sum(abs(int(v) - 3) for v in config.values()) / 10)
    assert time.process_time() - start < 10.0            # CPU time: 10 ms a trial


def test_bad_names_state_the_rule() -> None:
    with pytest.raises(ValueError, match="a sampler must be one of auto, portfolio"):
        Search(Pool(SPACE), 0, sampler="magic")          # type: ignore[arg-type]
    study = optuna.create_study(sampler=PoolSampler(Pool(SPACE)))
    with pytest.raises(ValueError, match="'e' is not a knob"):
        study.ask().suggest_int("e", 0, 3)
