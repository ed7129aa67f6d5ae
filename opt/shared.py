"""One study for any number of processes and hosts, in Optuna's own storage on PostgreSQL.

Optuna keeps the trials, heartbeats and retries. What it lacks is that two workers never get the
same config; asking one after the other, under a lock of the database, gives that. The lock belongs
to a connection, so it is free as soon as its holder is dead.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from ..ops.space import Config, config_text
from .pool import Pool
from .search.names import Name
from .search.sampler import PoolSampler
from .search.search import UNKNOWN_BUDGET

HEARTBEAT_S, GRACE_S = 5, 30         # a worker silent for longer than the latter is dead
MOST_RETRIES = 3                     # of a config whose worker died: it may be what kills them
_ALIVE = "worker"                    # attribute of a trial whose heart has begun to beat


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's word that heartbeats are experimental and meant for `optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Storage:
    """A PostgreSQL database that workers share.

    Args:
        url: postgresql://user@host/database, as SQLAlchemy takes it.
        heartbeat_s, grace_s: how often a worker shows that it lives, and for how long it may not.

    Raises:
        ValueError: the URL is not PostgreSQL's, or the server does not answer.
    """

    def __init__(self, url: str, heartbeat_s: int = HEARTBEAT_S, grace_s: int = GRACE_S):
        if not url.startswith("postgresql"):
            raise ValueError("workers share a study through PostgreSQL, whose URL begins with "
                             f"postgresql://, got {url!r}; SQLite is for one process at a time")
        self.heartbeat_s = heartbeat_s
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        try:
            # two first workers must not both make the tables
            with _quiet(), self.lock("expertile tables"):
                self.trials = RDBStorage(
                    url, heartbeat_interval=heartbeat_s, grace_period=grace_s,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MOST_RETRIES))
        except sa.exc.OperationalError as e:
            raise ValueError(f"the storage {url} does not answer: {str(e.orig).strip()}") from None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep all other workers out of what has this name."""
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        with self._engine.connect() as c:
            c.execute(sa.text("select pg_advisory_lock(:n)"), {"n": number})
            try:
                yield
            finally:
                c.execute(sa.text("select pg_advisory_unlock(:n)"), {"n": number})

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()
        self.trials.remove_session()


class SharedSearch:
    """What `Search` is for one process: asks for configs that no worker has had.

    Args:
        name: of the study; workers with the same name share it.
        budget: trials of all workers together, None when only time limits them.
    """

    def __init__(self, storage: Storage, name: str, pool: Pool, seed: int,
                 seeds: Iterable[Config] = (), sampler: Name = "auto", budget: int | None = None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = [pool.index.get(config_text(c)) for c in seeds]
        first = [0, *(i for i in known if i is not None)]
        if sampler == "auto" and budget is None:
            sampler = "portfolio"
        self._pool, self._storage, self._name = pool, storage, name
        self._limit = min(budget or len(pool), len(pool))
        self._sampler = PoolSampler(pool, sampler, budget or UNKNOWN_BUDGET, seed, first)
        with storage.lock(name):
            self.study = optuna.create_study(storage=storage.trials, study_name=name,
                                             sampler=self._sampler, load_if_exists=True)
        self._open: dict[str, Any] = {}      # text of a config: our running trial of it
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def ask(self) -> Config | None:
        """The next config, or None when all that the budget allows are done or being done."""
        with self._storage.lock(self._name):
            states = self._clean()
            waiting = any(t.state == TrialState.WAITING for t in states)
            if not waiting and (self._count(states) >= self._limit or self._is_done(states)):
                return None
            with _quiet():
                trial = self.study.ask(self._pool.distributions)
            self._storage.trials.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_ALIVE, f"{platform.node()}:{os.getpid()}")
        config = self._config_of(trial.params)
        self._open[config_text(config)] = trial
        return config

    def tell(self, config: Config, log_ratio: float | None) -> None:
        """The log of time over the default's time; None: it failed."""
        trial = self._open.pop(config_text(config), None)
        if trial is None:
            return                   # of an earlier tune: the storage has it
        good = log_ratio is not None and math.isfinite(log_ratio)
        self.study.tell(trial, math.exp(log_ratio) if good and log_ratio is not None else None,
                        state=TrialState.COMPLETE if good else TrialState.FAIL,
                        skip_if_finished=True)       # it was given up for dead, and is not

    def room(self) -> int:
        """How many configs it will still propose at most, as far as this worker knows."""
        return self._limit - self._count(self._trials())

    def has(self, config: Config) -> bool:
        """Whether some worker has it."""
        return self._pool.index[config_text(config)] in {self._number(t) for t in self._trials()}

    def is_done_within(self, gain: float) -> bool:
        """Whether the search's model expects less than this fraction of time to be gained yet."""
        return self._sampler.is_done_within(gain)

    def others_left(self) -> bool:
        """Whether a config is being tried elsewhere, or waits to be tried again."""
        with self._storage.lock(self._name):
            return any(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in self._clean())

    def wait(self) -> bool:
        """Wait for the other workers; False when a dead one left a config to try again."""
        while self.others_left():
            if any(t.state == TrialState.WAITING for t in self._trials()):
                return False
            time.sleep(min(1.0, self._storage.heartbeat_s / 4))
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One worker at a time: it decides and stores, the next ones find the answer stored."""
        with self._storage.lock(f"{self._name} verdict"):
            yield

    def close(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        self._heart.join()

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _clean(self) -> list[FrozenTrial]:
        """All trials, after those of dead workers were failed and put up again. Under the lock."""
        with _quiet():
            fail_stale_trials(self.study)
        for trial in self._trials():
            # Asking is done under our lock, so a trial that has no heartbeat yet has no worker.
            if trial.state == TrialState.RUNNING and _ALIVE not in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                if len(trial.params) == len(self._pool.distributions):
                    self.study.enqueue_trial(trial.params)
        return self._trials()

    def _count(self, trials: list[FrozenTrial]) -> int:
        """Configs that are done or being done, each once however often it was tried again."""
        return len({self._number(t) for t in trials} - {None})

    def _is_done(self, trials: list[FrozenTrial]) -> bool:
        return self._count(trials) == len(self._pool)

    def _number(self, trial: FrozenTrial) -> int | None:
        if len(trial.params) != len(self._pool.knobs):
            return None
        return self._pool.index.get(config_text(self._config_of(trial.params)))

    def _config_of(self, params: dict[str, Any]) -> Config:
        """A config of the pool from its knobs that vary."""
        return {**self._pool.configs[0], **params}

    def _beat(self) -> None:
        while not self._stop.wait(self._storage.heartbeat_s / 2):
            for trial in list(self._open.values()):
                self._storage.trials.record_heartbeat(trial._trial_id)
