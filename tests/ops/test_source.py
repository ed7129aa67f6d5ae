"""The hash of a kernel's source covers every file that its code comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile.ops import has_lowering, names, source

LANGS = ("tvm", "triton", "ascend")


@pytest.mark.parametrize(("op", "lang", "helpers"), [
    ("gemm_nt", "tvm", {"_tvm/gemm.py", "_tvm/tiles.py", "gemm_nt/operand.py"}),
    ("gemm_nt", "triton", {"_triton/gemm.py", "_triton/fp8.py"}),
    ("gemm_nt", "ascend", {"_ascend/gemm.py", "_ascend/tile.py"}),
    ("mla_decode", "tvm", {"_tvm/attention.py"}),
    ("fused_moe", "tvm", {"gemm_nt/operand.py", "_tvm/gemm.py"})])
def test_shared_helpers_are_part_of_it(op: str, lang: str, helpers: set[str]) -> None:
    found = {p.parent.name + "/" + p.name for p in source.files_of(op, lang)}
    assert helpers <= found


def test_every_lowering_has_its_own_files_and_more() -> None:
    for op in names():
        for lang in LANGS:
            if has_lowering(op, lang):
                found = source.files_of(op, lang)
                assert len(found) > 3 and all(p.is_relative_to(source._ROOT) for p in found)


def test_an_edit_of_a_helper_changes_it_and_a_comment_does_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in source.files_of("gemm_nt", "tvm"):
        copy = tmp_path / path.relative_to(source._ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    def hashed() -> str:
        source.source_hash.cache_clear()
        return source.source_hash("gemm_nt", "tvm")

    before, helper = hashed(), tmp_path / "_tvm" / "tiles.py"
    helper.write_text(helper.read_text() + "\n# only said\n")
    assert hashed() == before
    helper.write_text(helper.read_text() + "\nMORE = 1\n")
    assert hashed() != before
    source.source_hash.cache_clear()
