"""One kernel is the same text everywhere: whatever folders, environment and hash seed are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ascendnpuir", reason="the compiler is not installed: expertile[ascend]")
pytest.importorskip("tvm", reason="TVM is not installed: expertile[ascend]")

from expertile.targets.ascend import compiler, process
from expertile.targets.ascend.artifact import Artifact, Refused
from expertile.targets.ascend.devices import find
from tests.targets import ascend_same_child as child
from tests.targets.data.ascend import kernels

REPOSITORY = Path(__file__).parents[2]
OURS = (REPOSITORY, REPOSITORY / "src")
TOOLS = ("bishengir-compile", "bishengir-compile-a5", "bishengir-opt")


def _installed_elsewhere(folder: Path) -> Path:
    """The compiler package again, in a folder with a long name; only what runs is copied."""
    spec = importlib.util.find_spec("ascendnpuir")
    assert spec is not None and spec.origin is not None
    package, copy = Path(spec.origin).parent, folder / "ascendnpuir"
    (copy / "bin").mkdir(parents=True)
    (copy / "__init__.py").touch()
    (copy / "lib").symlink_to(package / "lib")
    shutil.copy(package / "bin" / TOOLS[0], copy / "bin")
    for tool in TOOLS[1:]:
        (copy / "bin" / tool).symlink_to(package / "bin" / tool)
    return folder


def test_two_installs_make_the_same_code(tmp_path: Path) -> None:
    far = tmp_path / ("a folder of somebody else, " * 4) / "and its temporary files"
    far.mkdir(parents=True)
    packages = _installed_elsewhere(tmp_path / ("site-packages-" * 8))
    usual = {**os.environ, "PYTHONHASHSEED": "0",
             "PYTHONPATH": os.pathsep.join(map(str, OURS))}
    other = {"PATH": "/usr/bin", "HOME": str(far), "TMPDIR": str(far), "PYTHONHASHSEED": "4711",
             "PYTHONPATH": os.pathsep.join(map(str, (packages, *OURS))), "X": "x" * 5000}
    runs = [subprocess.Popen([sys.executable, "-m", child.__name__], cwd=cwd, env=env, text=True,
                             stdout=subprocess.PIPE)
            for cwd, env in ((REPOSITORY, usual), (far, other))]
    here, there = (json.loads(run.communicate(timeout=120)[0]) for run in runs)
    for key in ("compiler", "folder"):
        assert here[key] != there[key]
    assert here["modules"] == there["modules"], "the emitter"
    assert here["artifacts"] == there["artifacts"], "the compiler"


def _modules() -> list[str]:
    first, *_, last = child.texts("ascend910b3")[:3]
    return [first, last]


def test_no_name_of_a_folder_changes_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    found = set()
    for length in (1, 60, 100, 150, 200):
        folder = tmp_path / ("x" * length)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        found.add(tuple(_sha(compiler.compile_module(m, find("910b3"))) for m in _modules()))
    assert len(found) == 1


def _sha(made: Artifact | Refused) -> str:
    assert isinstance(made, Artifact), made
    return made.sha256


def test_the_compiler_alone_follows_the_names_of_folders(tmp_path: Path) -> None:
    """Without this the tests above would show nothing; when it fails, all this care may go."""
    path = compiler.tool_path(TOOLS[0])
    assert path is not None
    module, found = _modules()[0], set()
    for length in (1, 20, 50, 150):
        folder = tmp_path / ("x" * length)
        folder.mkdir()
        (folder / "kernel.mlir").write_text(module)
        process.run_program(path, [
            "--target=Ascend910B3", *(f"--{k}={v}" for k, v in compiler.BASE_FLAGS.items()),
            "--mlir-disable-threading", f"--save-temps={folder}", str(folder / "kernel.mlir"),
            "-o", str(folder / "kernel.o")], 60.0, 8.0, ())
        found.add(hashlib.sha256((folder / "module.hivm.opt.mlir").read_bytes()).hexdigest())
    assert len(found) > 1


def test_the_text_names_no_place_of_this_machine() -> None:
    """The 950's compiler writes where its libraries stand, when it knows."""
    made = compiler.compile_module(kernels.group_quant(256, 32), find("950pr_9599"))
    assert isinstance(made, Artifact)
    assert "ascendnpuir" not in made.text and "bitcode" not in made.text


def test_a_kernel_that_runs_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with vm.memfd_noexec=2: the compiler runs from its place."""
    def refuse(path: Path) -> object:
        raise PermissionError(13, "no execution from memory")

    monkeypatch.setattr(process, "_in_memory", refuse)
    made = compiler.compile_module(kernels.group_quant(256, 32), find("910b3"))
    assert isinstance(made, Artifact) and made.peak("ub") > 0

