"""HOW a config is chosen: space, search, isolated build, check, time, record."""

from __future__ import annotations

from .budget import Budget, Guard
from .outcome import Event, Outcome
from .replay import replay
from .replay_record import shipped as landscapes
from .tune import plan, tune, tune_many

__all__ = ["Budget", "Event", "Guard", "Outcome", "landscapes", "plan", "replay", "tune",
           "tune_many"]
