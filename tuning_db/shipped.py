"""Records as JSON lines: what ships with the package, one file an arch, reviewed in git."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .record import Record

RECORDS_DIR = Path(__file__).parent / "records"


def read_lines(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a file, and what is wrong with each line that had to be refused."""
    records, problems = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_text(line.decode()))
        except (ValueError, TypeError) as e:
            problems.append(f"{path} line {number} is damaged and left out: {e}")
    return records, problems


def write_lines(path: Path, records: Iterable[Record]) -> int:
    """Write records in canonical form and order, replacing the file at once; returns how many."""
    lines = sorted({r.text for r in records}, key=lambda text: (_order(text), text))
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as f:
        f.writelines(line + "\n" for line in lines)
    os.chmod(f.name, 0o644)          # a temporary file is the owner's alone; this one is reviewed
    os.replace(f.name, path)
    return len(lines)


def _order(text: str) -> tuple[object, ...]:
    key = Record.from_text(text).key
    sizes = tuple((axis, str(type(v)), v) for axis, v in sorted(key.dynamic.items()))
    return key.op, key.device, str(sorted(key.static.items())), sizes


def shipped_files() -> list[Path]:
    """The package's own record files."""
    return sorted(RECORDS_DIR.glob("*.jsonl"))
