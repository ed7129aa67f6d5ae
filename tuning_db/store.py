"""The tuning database: a file of SQLite, or a server's database by URL; data only."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..ops.space import Config, config_text
from . import TuningDBError
from .errors import told
from .key import Key, canonical
from .record import Record
from .schema import RECORDS, check_version, prepare, version_of

BUSY_TIMEOUT_S = 20.0                # how long a writer waits for another one


def config_hash(config: Config) -> str:
    """The digest that names a config, and the fixed order that breaks ties."""
    return hashlib.sha256(config_text(config).encode()).hexdigest()[:32]


class TuningDB:
    """Records by key. Every `add` is one transaction: a killed process loses at most that one.

    Args:
        where: path of an SQLite file (made when absent), or a SQLAlchemy URL (postgresql://...).
        read_only: open an existing database without the right to change it.
    """

    def __init__(self, where: str | Path, read_only: bool = False):
        self.where = str(where)
        self.damaged: list[str] = []     # rows that the last `records` refused, and why
        with told(self.where):
            self._engine = self._open(read_only)
            try:
                self._prepare(read_only)
            except BaseException:
                self._engine.dispose()
                raise

    def __enter__(self) -> TuningDB:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._engine.dispose()

    def add(self, *records: Record) -> None:
        """Store records; one of the same key, role and config (or winner) is replaced."""
        with told(self.where), self._engine.begin() as c:
            for record in records:
                row = _row(record)
                same = (RECORDS.c.key_hash == row["key_hash"]) & (RECORDS.c.role == row["role"])
                if record.role == "candidate":
                    same &= RECORDS.c.config_hash == row["config_hash"]
                c.execute(RECORDS.delete().where(same))
                c.execute(RECORDS.insert().values(row))

    def records(self, *, key: Key | None = None, op: str | None = None, arch: str | None = None,
                role: str | None = None, status: str | None = None) -> list[Record]:
        """All records that match, oldest first; `damaged` names the rows that were left out."""
        query = sa.select(RECORDS.c.id, RECORDS.c.record).order_by(RECORDS.c.id)
        for column, value in ((RECORDS.c.key_hash, key and key.hash), (RECORDS.c.op, op),
                              (RECORDS.c.arch, arch), (RECORDS.c.role, role),
                              (RECORDS.c.status, status)):
            if value is not None:
                query = query.where(column == value)
        with told(self.where), self._engine.connect() as c:
            rows = c.execute(query).all()
        self.damaged = []
        return list(self._decoded(rows))

    def winner(self, key: Key) -> Record | None:
        """The record that answers for exactly this key."""
        return next(iter(self.records(key=key, role="winner")), None)

    def _decoded(self, rows: Any) -> Iterator[Record]:
        for number, text in rows:
            try:
                yield Record.from_text(text)
            except (ValueError, TypeError) as e:
                self.damaged.append(f"{self.where} row {number} is damaged and left out: {e}")

    def _open(self, read_only: bool) -> Engine:
        if "://" in self.where:
            return sa.create_engine(self.where)
        path = Path(self.where)
        if path.is_dir():
            raise TuningDBError(f"a tuning database must be a file, but {path} is a directory; "
                                "give the path of a file in it")
        if not read_only:
            _make_directory(path)
        elif not path.exists():
            raise TuningDBError(f"{path} does not exist; make it with: expertile tune --db {path}")
        mode = "ro" if read_only else "rwc"
        if read_only and not _readable_with_wal(path):
            mode = "ro&immutable=1"      # a WAL file in a directory that we may not write to
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        engine = sa.create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None,
                check_same_thread=False),
            poolclass=sa.pool.QueuePool)
        sa.event.listen(engine, "connect", _read_settings if read_only else _write_settings)
        sa.event.listen(engine, "begin", _begin_read if read_only else _begin_write)
        return engine

    def _prepare(self, read_only: bool) -> None:
        if not read_only:
            with self._engine.begin() as c:
                prepare(c, self.where)
            return
        with self._engine.connect() as c:
            found = version_of(c, self.where)
        if found is None:
            raise TuningDBError(f"{self.where} is empty; fill it with: expertile tune --db "
                                f"{self.where}")
        check_version(found, self.where)


def _row(record: Record) -> dict[str, Any]:
    key = record.key
    return {
        "key_hash": key.hash, "config_hash": config_hash(record.config), "role": record.role,
        "op": key.op, "arch": key.arch, "device": key.device, "source": key.source,
        "static": canonical(dict(key.static)), "dynamic": canonical(dict(key.dynamic)),
        "config": config_text(record.config), "status": record.status,
        "decision": record.decision, "us": record.us, "default_us": record.default_us,
        "speedup": record.speedup, "created": record.provenance.time, "record": record.text}


def _make_directory(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise TuningDBError(f"a tuning database must stand in a writable directory, but that of "
                            f"{path} cannot be made ({e.strerror}); give another path") from e


def _readable_with_wal(path: Path) -> bool:
    """Whether SQLite can open this file read-only together with its write-ahead log."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True                      # not a database: the caller's own attempt says so
    return True


def _read_settings(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")


def _write_settings(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_read(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin_write(connection: Connection) -> None:
    # Taking the lock at once: a reader that turns writer would fail without waiting (SQLite docs).
    connection.exec_driver_sql("BEGIN IMMEDIATE")
