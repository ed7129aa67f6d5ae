"""Lists the language of a Triton release from its source, without importing it.

    python -m tests.ops.triton_language FOLDER_OF_PACKAGE_TRITON >tests/ops/data/NAME.txt

A line is a name and the parameters it takes: "tl.dot input other ...", "tensor.to dtype ...",
"launch num_warps"; "*" stands for any positional ones. "syntax" is a node of Python's grammar that
kernels may hold, "attribute" what may follow a dot on a tensor, a type or a constexpr.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_PRIVATE = {"_builder", "_generator", "_semantic", "self", "cls"}
_VALUES = ("tensor", "dtype", "pointer_type", "block_type", "constexpr")
_OPTIONS = (("nvidia", "CUDAOptions"), ("amd", "HIPOptions"))
Defs = dict[str, ast.stmt]


def _top_level(path: Path) -> Defs:
    """What a module defines; the last definition of a name counts."""
    found: Defs = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
    return found


def _parameters(node: ast.stmt) -> list[str]:
    """Of a function, or of a class's __init__; nothing for a plain value."""
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return _parameters(made[0]) if made else []
    if not isinstance(node, ast.FunctionDef):
        return []
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in _PRIVATE]
    return [*names, "*"] if a.vararg else names


def _members(node: ast.stmt) -> Iterator[tuple[str, list[str] | None]]:
    """Methods of a class with their parameters, its other attributes with None."""
    assert isinstance(node, ast.ClassDef)
    for n in node.body:
        if isinstance(n, ast.FunctionDef):
            is_property = any(ast.unparse(d) == "property" for d in n.decorator_list)
            if not n.name.startswith("_"):
                yield n.name, None if is_property else _parameters(n)
            for inner in ast.walk(n):
                if (isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
                        and ast.unparse(inner.value) == "self"):
                    yield inner.attr, None


def _exported(init: Path) -> Iterator[str]:
    """Names that a package's __init__ takes from its modules."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (alias.asname or alias.name for alias in node.names)


def _compiler(package: Path) -> Iterator[str]:
    """Grammar, Python's own functions and launch options that the compiler knows."""
    path = package / "compiler" / "code_generator.py"
    tree = _top_level(path)["CodeGenerator"]
    assert isinstance(tree, ast.ClassDef)
    for node in ast.walk(tree):
        name = str(getattr(node, "name", ""))
        if name.startswith("visit_") and hasattr(ast, name.removeprefix("visit_")):
            yield f"syntax {name.removeprefix('visit_')}"
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "builtin_namespace":
            assert isinstance(node.value, ast.DictComp)
            yield from (f"builtin {n.strip()}" for n in ast.unparse(
                node.value.generators[0].iter).strip("()").split(","))
        if isinstance(node, ast.Expr) and "builtin_namespace.update" in ast.unparse(node):
            yield from (f"builtin {n.value}" for n in ast.walk(node)
                        if isinstance(n, ast.Constant) and isinstance(n.value, str))
    for backend, options in _OPTIONS:
        node = _top_level(package / "backends" / backend / "compiler.py")[options]
        assert isinstance(node, ast.ClassDef)
        yield from (f"launch {ast.unparse(n.target)}" for n in node.body
                    if isinstance(n, ast.AnnAssign))


def language(package: Path) -> list[str]:
    """All lines, sorted."""
    folder = package / "language"
    modules = {p.stem: _top_level(p) for p in folder.glob("*.py")}
    defined = {name: node for m in ("random", "math", "standard", "core")
               for name, node in modules[m].items()}
    lines = {" ".join([f"tl.{n}", *_parameters(defined[n])]) for n in _exported(
        folder / "__init__.py") if n in defined and not n.startswith("_")}
    lines |= {" ".join([f"tl.math.{n}", *_parameters(node)])
              for n, node in modules["math"].items()
              if isinstance(node, ast.FunctionDef) and not n.startswith("_")}
    for node in defined.values():
        if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).endswith("_tensor_member_fn") for d in node.decorator_list):
            lines.add(" ".join([f"tensor.{node.name}", *_parameters(node)[1:]]))
    for kind in _VALUES:
        for name, parameters in _members(modules["core"][kind]):
            if parameters is None:
                lines.add(f"attribute {name}")
            elif kind == "tensor" and not any(x.split()[0] == f"tensor.{name}" for x in lines):
                lines.add(" ".join([f"tensor.{name}", *parameters]))
    jit = _top_level(package / "runtime" / "jit.py")["jit"]
    return sorted({*lines, *_compiler(package), " ".join(["triton.jit", *_parameters(jit)])})


def write(package: Path, lines: Iterable[str]) -> str:
    """The committed file: the release and the command, then the lines."""
    version = next(package.parent.glob("triton-*.dist-info")).name.split("-")[1].split(".dist")[0]
    return "\n".join([f"# The language of triton {version}, by: python -m tests.ops."
                      "triton_language FOLDER/triton", "# (FOLDER: where the wheel was unpacked)",
                      *lines, ""])


if __name__ == "__main__":
    sys.stdout.write(write(Path(sys.argv[1]), language(Path(sys.argv[1]))))
