"""Kernels stay inside the Triton language that 3.2.0 and all later releases share.

The vendors' own Tritons follow 3.2 to 3.5, so what a newer one added would shut them out. Files
whose names end in _tma.py may use more: targets without descriptors never import them.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from .triton_language import language

REPO = Path(__file__).resolve().parents[2]
LANGUAGE = Path(__file__).parent / "data" / "triton_3_2_language.txt"
FILES = sorted(p for pattern in ("*/triton*.py", "_triton/*.py")
               for p in (REPO / "ops").glob(pattern) if not p.name.endswith("_tma.py"))
_UNVISITED = (ast.operator, ast.boolop, ast.unaryop, ast.cmpop, ast.expr_context)
# Where 3.2.0 needs a constexpr; it makes tensors of all locals that are not annotated as one.
_CONSTANT_ARGUMENTS = ("tl.arange", "tl.zeros", "tl.full", "tl.static_range")


@cache
def allowed() -> dict[str, list[str]]:
    """Parameters by name; "syntax X", "attribute X", "launch X" and "builtin X" have none."""
    found: dict[str, list[str]] = {}
    for line in LANGUAGE.read_text().splitlines():
        name, *rest = line.split()
        if name in ("syntax", "attribute", "launch", "builtin"):
            found[line] = []
        elif name != "#":
            found[name] = rest
    return found


def dotted(node: ast.AST) -> str:
    """ "tl.math.exp" of such an expression, "" of any other."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_kernel(node: ast.AST) -> bool:
    """Whether this is a function that Triton compiles."""
    return isinstance(node, ast.FunctionDef) and any(
        dotted(d.func if isinstance(d, ast.Call) else d) == "triton.jit"
        for d in node.decorator_list)


def wrong_call(name: str, call: ast.Call) -> Iterator[str]:
    """Arguments that `name` did not take."""
    parameters = allowed()[name]
    if len(call.args) > len(parameters) and "*" not in parameters:
        yield f"{name} takes {len(parameters)} arguments, got {len(call.args)}"
    for keyword in call.keywords:
        if keyword.arg not in parameters:
            yield f"{name} has no parameter {keyword.arg!r}"


def in_module(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """What is wrong anywhere in a file: names of tl, decorators, launch options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if (name.startswith("tl.") and name not in {*allowed(), "tl.math"}
                    and dotted(node.value) in ("tl", "tl.math")):
                yield node, f"no {name}"
        elif isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                name = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
                if name.startswith("triton.") and name not in allowed():
                    yield node, f"no decorator {name}"
                elif name in allowed() and isinstance(decorator, ast.Call):
                    yield from ((node, w) for w in wrong_call(name, decorator))
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in allowed():
                yield from ((node, w) for w in wrong_call(name, node))
            elif name.endswith(".launch"):
                yield from ((node, f"no launch option {k.arg!r}") for k in node.keywords
                            if k.arg and k.arg.islower() and f"launch {k.arg}" not in allowed())


def in_kernel(kernel: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    """What is wrong inside a kernel: grammar, methods, constants."""
    plain = {n.id for node in ast.walk(kernel) if isinstance(node, ast.Assign)
             for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in (n for statement in kernel.body for n in ast.walk(statement)):
        kind = type(node).__name__
        if not isinstance(node, _UNVISITED) and f"syntax {kind}" not in allowed():
            yield node, f"no {kind} in a kernel"
        if isinstance(node, ast.BoolOp) and len(node.values) > 2:
            yield node, "no chained and/or"
        if isinstance(node, ast.Attribute) and not dotted(node).startswith(("tl.", "triton.")):
            if f"tensor.{node.attr}" not in allowed() and f"attribute {node.attr}" not in allowed():
                yield node, f"tensors have no {node.attr!r}"
        elif isinstance(node, ast.Attribute) and dotted(node).startswith("triton."):
            yield node, f"{dotted(node)} is Python, not Triton"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            method = f"tensor.{getattr(node.func, 'attr', '')}"
            if not name.startswith(("tl.", "triton.")) and method in allowed():
                yield from ((node, w) for w in wrong_call(method, node))
            if hasattr(builtins, name) and f"builtin {name}" not in allowed():
                yield node, f"no {name}() in a kernel"
            if name in _CONSTANT_ARGUMENTS:
                inner = [n for a in node.args[:2 if name == "tl.arange" else 1]
                         for n in ast.walk(a)]
                owners = [n.value for n in inner if isinstance(n, ast.Attribute)]   # v.shape
                used = {n.id for n in inner if isinstance(n, ast.Name) and n not in owners}
                yield from ((node, f"{name} of {n!r}, which needs the annotation tl.constexpr")
                            for n in sorted(used & plain))


def violations(source: str) -> list[str]:
    """Every use of something that triton 3.2.0 does not have."""
    tree = ast.parse(source)
    found = [*in_module(tree), *(v for node in ast.walk(tree) if is_kernel(node)
                                 and isinstance(node, ast.FunctionDef) for v in in_kernel(node))]
    return [f"line {getattr(node, 'lineno', 0)}: {what}" for node, what in found]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_kernels_use_the_shared_subset(path: Path) -> None:
    assert violations(path.read_text()) == []


def test_there_are_kernels_to_check() -> None:
    count = sum(is_kernel(n) for p in FILES for n in ast.walk(ast.parse(p.read_text())))
    assert count >= 10, f"{count} kernels in {len(FILES)} files"


SEEDED = {
    "x = tl.make_tensor_descriptor(p, [N], [1], [N])": "no tl.make_tensor_descriptor",
    "x = tl.gather(x, i, 0)": "no tl.gather",
    "x = tl.sum(x, 0, dtype=tl.int32)": "tl.sum has no parameter 'dtype'",
    "for i in tl.range(0, N, 16, warp_specialize=True): x += 1":
        "tl.range has no parameter 'warp_specialize'",
    "x = tl.dot(x, x, rhs_k_pack=False)": "tl.dot has no parameter 'rhs_k_pack'",
    "x = tl.maximum(x, y, tl.PropagateNan.ALL, 1)": "tl.maximum takes 3 arguments, got 4",
    "x = x.to(tl.float8e8)": "no tl.float8e8",
    "x = x.gather(i, 0)": "tensors have no 'gather'",
    "x = x.sum(axis=0, dtype=tl.int32)": "tensor.sum has no parameter 'dtype'",
    "x = [tl.load(p + i) for i in p]": "no ListComp in a kernel",
    "x = triton.cdiv(N, 16)": "triton.cdiv is Python, not Triton",
    "x = sum(p)": "no sum() in a kernel",
    "x = N and N and N": "no chained and/or",
    "w = N // 2; x = tl.arange(0, w)": "tl.arange of 'w', which needs the annotation tl.constexpr",
}


@pytest.mark.parametrize(("line", "why"), SEEDED.items(), ids=SEEDED.values())
def test_the_check_sees(line: str, why: str) -> None:
    source = f"@triton.jit\ndef kernel(p, N: tl.constexpr):\n    {line}\n"
    assert why in [v.partition(": ")[2] for v in violations(source)]


@pytest.mark.parametrize(("source", "why"), [
    ("@triton.jit(launch_bounds=3)\ndef kernel(p):\n    pass\n",
     "triton.jit has no parameter 'launch_bounds'"),
    ("@triton.constexpr_function\ndef f(n):\n    return n\n",
     "no decorator triton.constexpr_function"),
    ("target.launch(kernel, (1,), x, num_warps=4, warp_specialize=True, BLOCK=16)\n",
     "no launch option 'warp_specialize'")])
def test_the_check_sees_outside_kernels(source: str, why: str) -> None:
    assert why in [v.partition(": ")[2] for v in violations(source)]


def test_the_list_is_made_as_its_head_says(tmp_path: Path) -> None:
    """A package of a few lines, through the same code that made the list."""
    package = tmp_path / "triton"
    for name, text in {
        "language/__init__.py": "from .core import dot, float32, tensor\nfrom .math import exp\n",
        "language/core.py": "class dtype: pass\nclass pointer_type: pass\nclass block_type: pass\n"
                            "class constexpr: pass\nclass tensor:\n    def to(self, dtype, "
                            "_builder=None): self.shape = 1\nfloat32 = dtype()\n"
                            "def dot(a, b, *rest, acc=None, _builder=None): pass\n",
        "language/math.py": "@core._tensor_member_fn\ndef exp(x, _builder=None): pass\n",
        "language/standard.py": "", "language/random.py": "",
        "compiler/code_generator.py": "class CodeGenerator:\n    def visit_For(self, n): pass\n",
        "runtime/jit.py": "def jit(fn, *, debug=None): pass\n",
        "backends/nvidia/compiler.py": "class CUDAOptions:\n    num_warps: int = 4\n",
        "backends/amd/compiler.py": "class HIPOptions:\n    kpack: int = 1\n",
    }.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert language(package) == [
        "attribute shape", "launch kpack", "launch num_warps", "syntax For", "tensor.exp",
        "tensor.to dtype", "tl.dot a b acc *", "tl.exp x", "tl.float32", "tl.math.exp x",
        "tl.tensor", "triton.jit fn debug"]
