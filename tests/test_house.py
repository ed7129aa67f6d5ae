"""The architecture itself: rooms, the direction of imports, what a bare import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import expertile

ROOT = Path(expertile.__file__).resolve().parent
REPO = Path(__file__).resolve().parents[1]
ROOMS = ("ops", "opt", "targets", "tuning_db", "bench", "model")
FRONT = "front"

# room -> the rooms that it may import; the table of design and ARCHITECTURE.md
ALLOWED = {
    "ops": set(),
    "targets": {"ops"},
    "tuning_db": {"ops", "targets"},
    "opt": {"ops", "targets", "tuning_db"},
    FRONT: {"ops", "targets", "tuning_db"},
    "model": {FRONT},
    "bench": {"ops", "targets", "tuning_db", "opt", FRONT, "model"},
    "commands": {"ops", "targets", "tuning_db", "opt", FRONT, "model", "bench"},
}
# Facts of the package, not of a room.
ANY = {"__version__"}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module path inside the package."""
    if parts and parts[0] in ROOMS:
        return parts[0]
    if parts and parts[0] in ("commands", "cli", "cli.py", "__main__", "__main__.py"):
        return "commands"
    return FRONT


def modules() -> list[Path]:
    """All modules, by the path through the package (links included)."""
    found = [p for p in ROOT.glob("*.py")] + list((ROOT / "commands").rglob("*.py"))
    for room in ROOMS:
        found += [ROOT / room / p.relative_to(REPO / room) for p in (REPO / room).rglob("*.py")]
    return sorted(found)


def runtime_imports(tree: ast.AST) -> list[ast.ImportFrom | ast.Import]:
    """Imports that happen when code runs: those under `if TYPE_CHECKING` do not."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(n) for child in node.body for n in ast.walk(child)}
    return [n for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom | ast.Import) and id(n) not in skipped]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports when it runs."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in runtime_imports(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(a.name.split(".")[0] == "expertile" for a in node.names), \
                f"{path}: imports inside the package are relative"
            continue
        if not node.level:
            assert (node.module or "").split(".")[0] != "expertile", \
                f"{path}: imports inside the package are relative"
            continue
        base = package[:len(package) - (node.level - 1)]
        module = tuple((node.module or "").split(".")) if node.module else ()
        for alias in node.names:
            target = (*base, *module, alias.name)
            if alias.name not in ANY:
                found.add(room_of(target if not module and not base else (*base, *module)
                                  or target))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    room = room_of(path.relative_to(ROOT).parts)
    foreign = imported_rooms(path) - {room}
    assert foreign <= ALLOWED[room], f"{room} may import {ALLOWED[room]}, {path} imports {foreign}"


def test_rooms_are_links_or_folders() -> None:
    for room in ROOMS:
        assert (ROOT / room).is_dir(), f"{ROOT / room} must be a folder or a link to one"


def test_no_bare_room_is_imported() -> None:
    assert not set(ROOMS) & set(sys.modules)


def test_file_sizes() -> None:
    """Files stay small: 400 lines for kernels (ops), about 200 elsewhere."""
    for path in modules():
        lines = len(path.read_text().splitlines())
        limit = 400 if room_of(path.relative_to(ROOT).parts) == "ops" else 260
        assert lines <= limit, f"{path} has {lines} lines, at most {limit}"


def test_bare_import_is_cheap_and_touches_no_compiler() -> None:
    code = (
        "import time, torch, json, sys; start = time.perf_counter(); import expertile; "
        "print(json.dumps([time.perf_counter() - start, sorted({m.split('.')[0] for m in "
        "sys.modules} & {'tvm', 'triton', 'optuna', 'sqlalchemy', 'typer', 'transformers'})]))")
    times = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True).stdout
        seconds, compilers = json.loads(out)
        times.append(seconds)
        assert compilers == []
    assert min(times) < 0.3, f"import expertile took {min(times):.2f} s on top of torch"
