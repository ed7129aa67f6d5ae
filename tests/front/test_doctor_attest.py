"""`expertile doctor --attest`: the report of a device, and the reader that believes no more."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from expertile import ops, targets
from expertile.commands import doctor_attest
from expertile.opt.attest import attest, digest
from expertile.opt.attest_check import judge

from .test_cli import expertile, refused


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This CPU's report on one operator."""
    file = tmp_path_factory.mktemp("attest") / "cpu.json"
    done = expertile("doctor", "--attest", str(file), "--device", "cpu", "--op", "silu_mul",
                     "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(file.read_text())
    return file


@pytest.fixture(scope="module")
def ascend(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report about an NPU that is not here."""
    target = targets.load("ascend910b3", cache_dir=tmp_path_factory.mktemp("attest"))
    op = ops.load("silu_mul")
    return attest(target, [(op, op.odd_shapes[0])], [])


def changed(document: dict[str, Any], **row: Any) -> dict[str, Any]:
    """A report with its first row changed, and sealed again."""
    made = copy.deepcopy(document)
    made["operators"][0] |= row
    return sealed(made)


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """With the digest of what it says."""
    return {**document, "sha256": digest(document)}


def test_a_cpu_is_attested(cpu: Path) -> None:
    document = json.loads(cpu.read_text())
    row, = document["operators"]
    assert (row["op"], row["compiles"], row["runs"], row["matches"]) == (
        "silu_mul", True, True, True)
    assert row["evidence"] == "L4 timed" and row["us"] > 0 and len(row["samples"]) >= 3
    assert row["speedup"] == 1.0 and row["answered_by"] == "default"
    assert document["packages"]["torch"] and document["target"]["toolchain"]["tvm"]
    npu = next(o for o in document["others"] if o["target"] == "ascend")
    assert npu["evidence"] == "L1 lowered" and "no kernel can run" in npu["why_not"]
    assert "CANN is not installed" in npu["card"]


def test_the_reader_believes_it(cpu: Path) -> None:
    done = expertile("doctor", "--attest", "--check", str(cpu))
    assert done.returncode == 0 and "sound" in done.stdout and "L4 timed" in done.stdout
    assert judge(json.loads(cpu.read_text())).notes == ()


def test_what_cannot_run_is_compiled(ascend: dict[str, Any]) -> None:
    row, = ascend["operators"]
    assert row["compiles"] is True and row["runs"] is None and row["us"] is None
    assert row["evidence"] == "L1 lowered" and row["status"] == "not run"
    judged = judge(ascend)
    assert judged.ok and any("nothing ran there" in note for note in judged.notes)


@pytest.mark.parametrize(("row", "says"), [
    ({"evidence": "L2 native object"}, "claims L2 native object, shows L1 lowered"),
    ({"evidence": "L4 timed", "runs": True, "matches": True, "us": 5.0, "samples": [5.0]},
     "without hivmc there is no binary"),
    ({"compiles": False}, "shows L0 described: it did not compile"),
    ({"evidence": "L9 known"}, "evidence must be one of"),
    ({"op": "sort"}, "no such operator"),
    ({"shape": {"tokens": 7}}, "its shape lacks h, dtype"),
    ({"shape": 7}, "shape must be of type"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_nothing_is_rounded_up_without_a_card(ascend: dict[str, Any], row: dict[str, Any],
                                              says: str) -> None:
    judged = judge(changed(ascend, **row))
    assert not judged.ok and any(says in e for e in judged.errors), judged.errors


@pytest.mark.parametrize(("row", "says"), [
    ({"runs": False}, "claims L4 timed, shows L2 native object: it did not run"),
    ({"matches": False}, "claims L4 timed, shows L3 executed and checked"),
    ({"samples": []}, "a time needs samples"),
    ({"samples": [1.0, -1.0]}, "a time needs samples"),
    ({"us": 1e-3}, "its samples say"),
    ({"speedup": 2.0}, "is 1.0 times as fast as itself, got 2.0"),
    ({"extra": 1}, "must have exactly"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_nothing_is_rounded_up_on_a_device(cpu: Path, row: dict[str, Any], says: str) -> None:
    judged = judge(changed(json.loads(cpu.read_text()), **row))
    assert not judged.ok and any(says in e for e in judged.errors), judged.errors


def test_a_weaker_claim_is_fine_and_versions_are_noted(cpu: Path) -> None:
    document = json.loads(cpu.read_text())
    assert judge(changed(document, evidence="L2 native object")).ok
    document["packages"]["torch"] = "9.9"
    document["operators"][0]["source"] = "0" * 16
    judged = judge(sealed(document))
    assert judged.ok and any("torch: made with 9.9" in n for n in judged.notes)
    assert any("kernels differ from this version's: silu_mul" in n for n in judged.notes)
    del document["packages"]["torch"]
    assert not judge(sealed(document)).ok
    document["target"]["name"] = "null"
    assert not judge(sealed(document)).ok


def test_a_target_that_could_not_run_ran_nothing(cpu: Path) -> None:
    document = json.loads(cpu.read_text())
    document["target"]["why_not"] = "no compiler"
    judged = judge(sealed(document))
    assert any("the target could not run: no compiler" in e for e in judged.errors)


def test_a_changed_or_broken_file_is_refused(cpu: Path, tmp_path: Path) -> None:
    document = json.loads(cpu.read_text())
    document["operators"][0]["us"] *= 0.5
    (tmp_path / "changed.json").write_text(json.dumps(document))
    done = expertile("doctor", "--attest", "--check", str(tmp_path / "changed.json"), "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and not answer["ok"]
    assert any("changed after it was made" in e for e in answer["errors"])
    (tmp_path / "cut.json").write_text(cpu.read_text()[:-20])
    with pytest.raises(ValueError, match="cut.json must be JSON"):
        doctor_attest.check(tmp_path / "cut.json", as_json=False)
    with pytest.raises(ValueError, match="--check reads a report"):
        doctor_attest.check(None, as_json=False)
    refused("doctor", "report.json", says="belong to doctor --attest")
    assert "an attestation is a JSON object" in judge([]).errors[0]
    assert len(judge({}).errors) >= 10
