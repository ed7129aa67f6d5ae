"""The tables, and how an older database becomes a newer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Float, Index, Integer, MetaData, Table, Text

from . import TuningDBError

VERSION = 1
METADATA = MetaData()

# `record` holds the whole record as canonical JSON; the other columns repeat what is asked by.
RECORDS = Table(
    "records", METADATA,
    Column("id", Integer, primary_key=True),
    Column("key_hash", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("op", Text, nullable=False),
    Column("arch", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("static", Text, nullable=False),
    Column("dynamic", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("decision", Text),
    Column("us", Float),
    Column("default_us", Float),
    Column("speedup", Float),
    Column("created", Text, nullable=False),
    Column("record", Text, nullable=False),
    Index("one_row_per_candidate", "key_hash", "role", "config_hash", unique=True),
    Index("by_operator", "op", "arch", "role"),
)
SCHEMA_VERSION = Table("expertile_schema", METADATA, Column("version", Integer, nullable=False))

Migration = Callable[[Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}     # from version N to N + 1


def prepare(connection: Connection, where: str, version: int = VERSION,
            migrations: Mapping[int, Migration] = MIGRATIONS) -> None:
    """Create the tables, or bring them up to `version`; refuse what is newer or not ours."""
    found = version_of(connection, where)
    if found is None:
        METADATA.create_all(connection)
        connection.execute(SCHEMA_VERSION.insert().values(version=version))
        return
    check_version(found, where, version)
    for step in range(found, version):
        migrations[step](connection)
    if found != version:
        connection.execute(SCHEMA_VERSION.update().values(version=version))


def version_of(connection: Connection, where: str) -> int | None:
    """The schema version of a database, or None when it is empty."""
    tables = sa.inspect(connection).get_table_names()
    if SCHEMA_VERSION.name not in tables:
        if tables and RECORDS.name in tables or connection.dialect.name == "sqlite" and tables:
            raise TuningDBError(f"{where} is a database, but not a tuning database (its tables are "
                                f"{', '.join(sorted(tables)[:5])}); choose another path")
        return None
    found: int | None = connection.execute(sa.select(SCHEMA_VERSION.c.version)).scalar()
    if found is None:
        raise TuningDBError(f"{where} has lost its schema version; restore it from a copy")
    return found


def check_version(found: int, where: str, version: int = VERSION) -> None:
    """Refuse a database that a newer release wrote."""
    if found > version:
        raise TuningDBError(f"{where} has schema version {found}, this release reads up to "
                            f"{version}; upgrade expertile or choose another database")
