"""The store: transactions, two writers, damage, versions, unusable paths."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from expertile.tuning_db import TuningDBError, schema
from expertile.tuning_db.shipped import read_lines, write_lines
from expertile.tuning_db.store import TuningDB
from tests.tuning_db.records import CONFIG, candidate, winner

_WRITER = """
import sys
from expertile.tuning_db.store import TuningDB
from tests.tuning_db.records import candidate
with TuningDB(sys.argv[1]) as db:
    print("ready", flush=True)
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        db.add(candidate(i))
        print(i, flush=True)
"""


def _writer(path: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(first), str(last)],
                            stdout=subprocess.PIPE)


def test_add_find_replace(tmp_path: Path) -> None:
    with TuningDB(tmp_path / "new" / "x.sqlite") as db:
        db.add(candidate(1), candidate(2), winner())
        db.add(candidate(2, us=7.0), winner(config={**CONFIG, "tile": 64}))
        assert [r.us for r in db.records(role="candidate")] == [10.0, 7.0]
        found = db.winner(winner().key)
        assert found is not None and found.config == {**CONFIG, "tile": 64}
        assert db.winner(winner(key_device="other").key) is None
        assert db.records(op="mla_decode") == [] and len(db.records(arch="null")) == 3
    mode = sqlite3.connect(tmp_path / "new" / "x.sqlite").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    writers = [_writer(path, 100 * i, 100 * i + 100) for i in range(2)]
    assert [w.wait(120) for w in writers] == [0, 0]
    with TuningDB(path, read_only=True) as db:
        assert sorted(r.config["i"] for r in db.records()) == list(range(200))


def test_killed_writer_loses_at_most_the_row_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    process = _writer(path, 0, 100_000)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    said = [int(n) for n in process.stdout.read().split()]
    process.wait()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with TuningDB(path) as db:
        stored = [r.config["i"] for r in db.records()]
        assert stored[:len(said)] == said and len(stored) - len(said) <= 1
        db.add(candidate(-1))


def test_tampered_row_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with TuningDB(path) as db:
        db.add(candidate(1), candidate(2))
    with sqlite3.connect(path) as c:
        c.execute("UPDATE records SET record = replace(record, '\"us\":10.0', '\"us\":\"now\"') "
                  "WHERE id = 1")
    with TuningDB(path) as db:
        assert [r.config["i"] for r in db.records()] == [2]
        assert len(db.damaged) == 1 and "row 1 is damaged" in db.damaged[0]


def test_unusable_paths_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("this is not a database, " * 100)
    (tmp_path / "file").write_text("")
    with sqlite3.connect(tmp_path / "foreign.sqlite") as c:
        c.execute("CREATE TABLE songs (name TEXT)")
    for path, rule in ((tmp_path, "is a directory"), (tmp_path / "file" / "x.sqlite", "writable"),
                       (Path("/proc/x/y.sqlite"), "writable"),
                       (tmp_path / "text.sqlite", "no SQLite database"),
                       (tmp_path / "foreign.sqlite", "not a tuning database"),
                       ("nosuchserver://host/db", "path or the URL")):
        with pytest.raises(TuningDBError, match=rule) as e:
            TuningDB(path)
        assert "\n" not in str(e.value) and str(path) in str(e.value)
    with pytest.raises(TuningDBError, match="does not exist"):
        TuningDB(tmp_path / "none.sqlite", read_only=True)


def test_read_only(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with TuningDB(path) as db:
        db.add(candidate(1))
    with TuningDB(path, read_only=True) as db:
        assert len(db.records()) == 1
        with pytest.raises(TuningDBError, match="writable"):
            db.add(candidate(2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_file_without_write_permission(tmp_path: Path) -> None:
    path = tmp_path / "d" / "x.sqlite"
    with TuningDB(path) as db:
        db.add(candidate(1))
    path.chmod(0o444)
    path.parent.chmod(0o555)
    with pytest.raises(TuningDBError, match="writable"):
        TuningDB(path)
    with TuningDB(path, read_only=True) as db:
        assert len(db.records()) == 1


def test_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertile.tuning_db.store.BUSY_TIMEOUT_S", 0.2)
    path = tmp_path / "x.sqlite"
    with TuningDB(path) as db:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(TuningDBError, match="another process has held it"):
            db.add(candidate(1))
        holder.execute("ROLLBACK")
        db.add(candidate(1))


def test_newer_schema_is_refused_and_older_ones_are_migrated(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with TuningDB(path) as db:
        db.add(candidate(1))

    def add_column(c: sa.Connection) -> None:
        c.exec_driver_sql("ALTER TABLE records ADD COLUMN energy FLOAT")

    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as c:
        schema.prepare(c, str(path), version=2, migrations={1: add_column})
    with engine.connect() as c:
        assert schema.version_of(c, str(path)) == 2
        assert c.exec_driver_sql("SELECT energy FROM records").all() == [(None,)]
    engine.dispose()
    for read_only in (False, True):
        with pytest.raises(TuningDBError, match="schema version 2.*upgrade expertile"):
            TuningDB(path, read_only=read_only)


def test_lines_are_canonical_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    path, records = tmp_path / "null.jsonl", [winner(key_device="b"), winner(key_device="a")]
    assert write_lines(path, [*records, records[0]]) == 2
    first = path.read_bytes()
    assert write_lines(path, reversed(read_lines(path)[0])) == 2 and path.read_bytes() == first
    path.write_bytes(first.replace(b'"us":10.0', b'"us":NaN', 1) + b"\xff\xfe\n")
    found, problems = read_lines(path)
    assert [r.key.device for r in found] == ["b"]
    assert len(problems) == 2 and "line 1 is damaged" in problems[0]
