"""The source hash of a lowering: which code a record was measured with."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parent      # the package reaches this room through a link


def _imports(tree: ast.AST, path: Path) -> set[Path]:
    """The files of this room that a module imports (relative imports only)."""
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
            parts = node.module.split(".") if node.module else []
            names = [[*parts, alias.name] for alias in node.names] + [parts]
            for name in names:
                target = base.joinpath(*name)
                found |= {p for p in (target.with_suffix(".py"), target / "__init__.py")
                          if name and p.is_file() and _ROOT in p.resolve().parents}
    return {p.resolve() for p in found}


def files_of(op_name: str, lang: str) -> tuple[Path, ...]:
    """The lowering's file, its operator's definition, and all helpers they import."""
    todo = {_ROOT / op_name / f"{lang}.py", _ROOT / op_name / "__init__.py"}
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path.is_file() and path not in seen:
            seen.add(path)
            todo |= _imports(ast.parse(path.read_text()), path)
    return tuple(sorted(seen))


@cache
def source_hash(op_name: str, lang: str) -> str:
    """A hash of the code (not of comments or layout) behind one operator's lowering."""
    digest = hashlib.sha256()
    for path in files_of(op_name, lang):
        digest.update(str(path.relative_to(_ROOT)).encode())
        digest.update(ast.dump(ast.parse(path.read_text())).encode())
    return digest.hexdigest()[:16]
