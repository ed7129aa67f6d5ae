"""A PostgreSQL server of the tests' own, on a private socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [
    Path(p).parent for p in [shutil.which("postgres")] if p]


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database; the server and its files are gone afterwards."""
    programs = PROGRAMS[-1]
    # PostgreSQL refuses to run as root, and a socket's path must be short.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        data = f"{folder}/data"

        def run(*words: str) -> None:
            subprocess.run(words, user=user, cwd=folder, check=True, capture_output=True)

        run(f"{programs}/initdb", "-D", data, "-U", "tuner", "-A", "trust", "--no-sync")
        run(f"{programs}/pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o",
            f"-k {folder} -c listen_addresses='' -c fsync=off", "start")
        try:
            yield f"postgresql://tuner@/postgres?host={folder}"
        finally:
            run(f"{programs}/pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
