"""module.hivm.opt.mlir as a tree of operations, and its affine maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..artifact import kernels

_MAP = re.compile(r"^(#map\d*) = affine_map<(?:\((.*?)\))?(?:\[(.*?)\])? -> \((.*)\)>$", re.M)
_TOKEN = re.compile(r"\s*(floordiv|ceildiv|mod|\w+|[-+*(),])")
_LABEL = re.compile(r"(\^bb\d+)(?:\((.*)\))?:")
_ARGUMENT = re.compile(r"(%arg\d+): (?:memref<\?x)?(\w+)")


@dataclass(frozen=True)
class Op:
    """One operation: "%a, %b = name rest", with the operations of its regions."""

    line: int                        # in the module, from 1
    results: tuple[str, ...]
    name: str
    rest: str                        # what follows the name, without the bracket of a region
    body: tuple[Op, ...] = ()
    otherwise: tuple[Op, ...] = ()   # the else region of scf.if


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel."""

    name: str
    dtype: str                       # element type of a memref, or of the scalar
    role: str                        # "ffts_base_address", "workspace" ...; "" for the kernel's own
    is_memref: bool


@dataclass(frozen=True)
class Function:
    """A kernel of the module: what one kind of core executes."""

    name: str
    core: str                        # "AIC" or "AIV"
    arguments: tuple[Argument, ...]
    body: tuple[Op, ...]


def parse_functions(text: str) -> tuple[Function, ...]:
    """The kernels of a module."""
    lines = text.splitlines()
    found = []
    for name, own in kernels(text).items():
        first = next(i for i, line in enumerate(lines) if line == own[0])
        core = re.search(r"func_core_type<(\w+)>", own[0])
        if core is None:
            raise ValueError(f"{name} does not say on which core it runs")
        body, end = _region(lines, first + 1)
        assert lines[end].strip() == "}"
        found.append(Function(name, core[1], _arguments(own[0]), body))
    return tuple(found)


def _arguments(head: str) -> tuple[Argument, ...]:
    signature = head[head.index("(") + 1:head.index(") attributes") + 1]
    found = []
    for text in re.split(r"(?=%arg\d+: )", signature)[1:]:
        match, role = _ARGUMENT.match(text), re.search(r"arg_type<(\w+)>", text)
        assert match is not None, text
        found.append(Argument(match[1], match[2], role[1] if role else "", "memref<" in text))
    return tuple(found)


def _region(lines: Sequence[str], at: int) -> tuple[tuple[Op, ...], int]:
    """The operations from line `at` to the bracket that closes the region, and its line."""
    ops = []
    while not lines[at].lstrip().startswith("}"):
        line, number = lines[at].strip(), at + 1
        if label := _LABEL.match(line):          # its parameters are like results
            ops.append(Op(number, tuple(re.findall(r"%[\w-]+", label[2] or "")), label[1], ""))
            at += 1
            continue
        left, _, text = line.partition(" = ") if line.startswith("%") else ("", "", line)
        name = re.split(r"[ (\[]", text, maxsplit=1)[0]
        rest = text[len(name):].strip()
        body: tuple[Op, ...] = ()
        otherwise: tuple[Op, ...] = ()
        if rest.endswith("{"):
            rest = rest[:-1].strip()
            body, at = _region(lines, at + 1)
            if lines[at].strip().startswith("} else"):
                otherwise, at = _region(lines, at + 1)
        if line:
            ops.append(Op(number, tuple(_results(left)), name, rest, body, otherwise))
        at += 1
    return tuple(ops), at


def _results(left: str) -> list[str]:
    """"%20:2" -> %20#0, %20#1; "%base, %sizes:2" -> %base, %sizes#0, %sizes#1."""
    names: list[str] = []
    for part in left.split(", ") if left else ():
        name, _, count = part.partition(":")
        names += [f"{name}#{i}" for i in range(int(count))] if count else [name]
    return names


# ---- affine maps

Evaluate = Callable[[Sequence[int]], tuple[int, ...]]


def parse_maps(text: str) -> Mapping[str, Evaluate]:
    """The affine maps by name; each takes the dimensions and then the symbols."""
    return {name: _evaluator(f"{dims},{symbols}".strip(","), body)
            for name, dims, symbols, body in _MAP.findall(text)}


def _evaluator(inputs: str, body: str) -> Evaluate:
    names = [n.strip() for n in inputs.split(",") if n.strip()]
    tokens = _TOKEN.findall(body)

    def evaluate(values: Sequence[int]) -> tuple[int, ...]:
        reader = _Expression(tokens, dict(zip(names, values, strict=True)))
        results = [reader.sum()]
        while reader.take(","):
            results.append(reader.sum())
        return tuple(results)

    return evaluate


class _Expression:
    """Evaluates "(s0 * 3 + d0 floordiv 16) mod 2" by recursive descent.

    Values may be arrays, so nothing is changed in place.
    """

    def __init__(self, tokens: list[str], values: Mapping[str, int]):
        self._tokens, self._values, self._at = tokens, values, 0

    def take(self, token: str) -> bool:
        """Whether the next token is this one; if so it is consumed."""
        found = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += found
        return found

    def sum(self) -> int:
        value = self._product()
        while True:
            if self.take("+"):
                value = value + self._product()
            elif self.take("-"):
                value = value - self._product()
            else:
                return value

    def _product(self) -> int:
        value = self._factor()
        while True:
            if self.take("*"):
                value = value * self._factor()
            elif self.take("floordiv"):
                value = value // self._factor()
            elif self.take("ceildiv"):
                value = -(-value // self._factor())
            elif self.take("mod"):
                value = value % self._factor()
            else:
                return value

    def _factor(self) -> int:
        if self.take("-"):
            return -self._factor()
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise ValueError(f"an affine map's bracket does not close: {self._tokens}")
            return value
        token = self._tokens[self._at]
        self._at += 1
        return self._values[token] if token in self._values else int(token)
