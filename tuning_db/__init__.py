"""WHAT was measured and WHICH record answers."""

from __future__ import annotations


class TuningDBError(ValueError):
    """A tuning database cannot be used: which one, by what rule, and what to do."""
