"""The searches by name."""

from __future__ import annotations

from typing import Literal, get_args

Name = Literal["auto", "portfolio", "tpe", "gp", "ga", "random", "exhaustive"]
NAMES: tuple[Name, ...] = get_args(Name)
