"""What a record says of the command that made it."""

from __future__ import annotations

import re

import pytest

from expertile.commands.command_line import command_line
from expertile.tuning_db.shipped import read_lines, shipped_files


@pytest.mark.parametrize(("arguments", "said"), [
    (["tune", "--db", "/home/me/x.sqlite", "--op", "gemm_nt"], "expertile tune --op gemm_nt"),
    (["tune", "--storage=postgresql://me:secret@host/db", "--tokens", "1,4"],
     "expertile tune --tokens 1,4"),
    (["tune", "--op", "a", "--storage", "postgresql://me:secret@host/db"], "expertile tune --op a"),
    (["tune", "--db", "--storage", "--op", "a"], "expertile tune --op a"),
    (["tune", "run", "/mnt/share/v3.bundle", "--budget", "60s"],
     "expertile tune run v3.bundle --budget 60s"),
    (["tune", "--collected=/tmp/seen.json", "--model", "/data/my model"],
     "expertile tune --collected=seen.json --model 'my model'"),
])
def test_it_keeps_what_was_done_and_not_where(arguments: list[str], said: str) -> None:
    assert command_line(arguments) == said


def test_shipped_records_name_no_path_of_the_machine_that_made_them() -> None:
    commands = [r.provenance.command for path in shipped_files() for r in read_lines(path)[0]]
    assert commands and not [c for c in commands if re.search(r"(^|[\s=])/|--db|--storage", c)]
