"""Driver errors as one line: which database, by what rule, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from . import TuningDBError

_ADVICE = (
    ("locked", "another process has held it for longer than "
     "the time that a writer waits; wait for it or end it, then repeat"),
    ("readonly", "it must be writable; change its permissions or give another path"),
    ("unable to open", "its path must be readable and writable; give another path"),
    ("not a database", "it is no SQLite database; give another path or remove the file"),
    ("malformed", "it is damaged; restore a copy, or try: sqlite3 FILE .recover"),
    ("disk is full", "free some space on that disk, then repeat; nothing stored before is lost"),
)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn a driver's error into one line that says which database, the rule and what to do."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as e:
        cause = str(getattr(e, "orig", None) or e)
        advice = next((say for word, say in _ADVICE if word in cause),
                      "check that the database is there and may be used")
        raise TuningDBError(f"the tuning database {where} cannot be used ({cause}): "
                            f"{advice}") from e
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as e:
        raise TuningDBError(f"{where} must be a path or the URL of a supported server "
                            f"(postgresql://...): {e}") from e
