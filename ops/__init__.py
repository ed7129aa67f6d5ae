"""WHAT is computed: one folder an operator; the folder listing is the registry."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .spec import Args, Operator, Outputs


@cache
def names() -> tuple[str, ...]:
    """All operators, by name."""
    here = Path(__file__).parent
    return tuple(sorted(p.parent.name for p in here.glob("[a-z]*/__init__.py")))


@cache
def load(name: str) -> Operator:
    """The definition of one operator."""
    if name not in names():
        raise ValueError(f"an operator must be one of {', '.join(names())}, got {name!r}")
    op = import_module(f".{name}", __package__).OP
    assert isinstance(op, Operator) and op.name == name, f"{name}/__init__.py must define its OP"
    return op


def has_lowering(name: str, lang: str) -> bool:
    """Whether ops/<name>/<lang>.py exists."""
    return find_spec(f".{name}.{lang}", __package__) is not None


@cache
def lowering(name: str, lang: str) -> ModuleType:
    """The module ops/<name>/<lang>.py; imports the compiler of that language."""
    return import_module(f".{name}.{lang}", __package__)


def slack(name: str, args: Args) -> Outputs | None:
    """What outputs may be off beside the tolerance: ops/<name>/ties.py; None where there is none.

    For operators that cast inside: next to a tie a right kernel may take either code.
    """
    if find_spec(f".{name}.ties", __package__) is None:
        return None
    found: Outputs = import_module(f".{name}.ties", __package__).slack(*args)
    return found
