"""`tune --workers`: every device has its share, and what a dead process left is done as well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expertile.commands.tune_workers import count_of, share_of, visible
from expertile.tuning_db.store import TuningDB


def test_each_process_has_its_share(tmp_path: Path) -> None:
    db = tmp_path / "x.sqlite"
    done = subprocess.run(
        [sys.executable, "-m", "expertile", "tune", "--device", "null", "--preset", "tiny", "--op",
         "silu_mul,moe_route", "--trials", "4", "--workers", "2", "--db", str(db), "--json"],
        capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["records"]
    assert len(rows) > 4 and all(r["resumed"] for r in rows)     # the children had done them all
    with TuningDB(db, read_only=True) as opened:
        commands = [r.provenance.command for r in opened.records(role="winner")]
    shares = [c.partition("--share ")[2][:3] for c in commands]
    assert len(shares) == len(rows) and abs(shares.count("0/2") - shares.count("1/2")) <= 1


def test_shares_are_disjoint_and_complete() -> None:
    parts = [share_of(f"{i}/3", range(10)) for i in range(3)]
    assert sorted(x for part in parts for x in part) == list(range(10))
    assert share_of("", range(10)) == range(10)


@pytest.mark.parametrize(("device", "env", "place", "want"), [
    ("cuda", {}, 2, "2"), ("cuda", {"CUDA_VISIBLE_DEVICES": "4,7,GPU-ab"}, 2, "GPU-ab"),
    ("cuda", {"CUDA_VISIBLE_DEVICES": "5"}, 0, "5"), ("null", {}, 1, None)])
def test_a_process_sees_one_device(device: str, env: dict[str, str], place: int,
                                   want: str | None) -> None:
    assert visible(device, place, env).get("CUDA_VISIBLE_DEVICES") == want


def test_auto_counts_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [count_of("auto", d) for d in ("cuda", "cuda:1", "cpu", "sm_90")] == [4, 1, 1, 1]
    assert count_of("3", "cuda") == 3
    for workers, device in (("5", "cuda"), ("2", "cpu"), ("2", "cuda:0"), ("0", "cuda"),
                            ("many", "cuda")):
        with pytest.raises(ValueError, match="--workers"):
            count_of(workers, device)
