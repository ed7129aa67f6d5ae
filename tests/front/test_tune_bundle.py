"""`tune plan` and `tune run` as a user types them: another folder, another cache, kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from expertile.cli import app
from expertile.tuning_db.store import TuningDB

PLAN = ("tune", "plan", "--device", "cpu", "--preset", "tiny", "--op", "silu_mul", "--tokens", "4")
_COMPILER = """#!/bin/sh
echo "$@" >> {log}
exec {real} "$@"
"""


def expertile(folder: Path, *words: object, path: str = "") -> subprocess.Popen[str]:
    """The command in a place where nothing is known yet."""
    folder.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXPERTILE_")}
    env = {**kept, "XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data"),
           "PATH": path + os.environ["PATH"]}
    return subprocess.Popen([sys.executable, "-m", "expertile", *map(str, words)], cwd=folder,
                            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def done(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What it printed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    return out, err


def invoke(*words: object) -> Any:
    """The command in this process."""
    return CliRunner().invoke(app, [str(w) for w in words])


def logging_compiler(folder: Path) -> tuple[str, Path]:
    """A folder for PATH whose C++ compilers write down what they link."""
    folder.mkdir()
    log = folder / "log"
    for name in ("c++", "g++", "clang++"):
        if real := shutil.which(name):
            (folder / name).write_text(_COMPILER.format(log=log, real=real))
            (folder / name).chmod(0o755)
    return f"{folder}:", log


def test_a_killed_plan_goes_on_and_its_bundle_is_run_without_a_compiler(tmp_path: Path) -> None:
    here, there, bundle = tmp_path / "here", tmp_path / "there", tmp_path / "x.bundle"
    plan = (*PLAN, "--trials", 3, "--out", bundle)
    killed = expertile(here, *plan)
    deadline = time.monotonic() + 100
    kernels = list[Path]()
    while not kernels and time.monotonic() < deadline:
        kernels = list((here / "cache").rglob("kernels/*.sha256"))
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert kernels and not bundle.exists()
    built = {p.with_suffix(".so").name: p.stat().st_mtime_ns for p in kernels}
    said = json.loads(done(expertile(here, *plan, "--json"))[0])
    assert [s["measure"] for s in said["shapes"]] == [3, 3] and said["files"] == 12
    assert not list((here / "cache").rglob("*.so")) and built        # packed, and cleaned up
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.bundle"]

    path, log = logging_compiler(tmp_path / "bin")
    ran = json.loads(done(expertile(there, "tune", "run", bundle, "--json", path=path))[0])
    records: list[dict[str, Any]] = ran["records"]
    assert ran["compiled"] == 0 and [r["trials"] for r in records] == [3, 3]
    assert all(r["decision"] in ("tuned", "default kept") for r in records)
    linked = log.read_text().splitlines() if log.exists() else []
    assert not [line for line in linked if "limits.so" not in line]   # the machine's own limits
    user_db = there / "data" / "expertile" / "tuning.sqlite"
    home = tmp_path / "home.sqlite"
    assert invoke("db", "merge", user_db, "--db", home).exit_code == 0
    with TuningDB(home, read_only=True) as db:
        rows = db.records()
    assert len(rows) == 8 and all(r.status in ("ok", "noisy") for r in rows)
    assert all(said["digest"][:16] in r.provenance.versions["bundle"] for r in rows)

    assert "mean nothing to null" in str(invoke("tune", "run", bundle, "--device", "null",
                                                "--db", home).exception)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    refused = invoke(*PLAN, "--out", other).exception
    assert "is no bundle" in str(refused) and other.read_text() == "mine"
    bundle.write_bytes(bundle.read_bytes()[:-200])
    out, err = done(expertile(there, "tune", "run", bundle), 2)
    assert out == "" and len(err.splitlines()) == 1 and "x.bundle is damaged" in err
