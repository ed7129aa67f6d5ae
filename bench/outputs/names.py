"""Short names: of the cases of an operator only what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

from ..result import Case


def _axes(name: str) -> tuple[str, dict[str, str]]:
    """"gemm_nt[n=8,k=4]" as its head and its axes; a name of another form has no axes."""
    head, opened, rest = name.partition("[")
    if not opened or not rest.endswith("]"):
        return name, {}
    pairs = [part.partition("=") for part in rest[:-1].split(",")]
    if not all(equals for _, equals, _ in pairs):
        return name, {}
    return head, {axis: value for axis, _, value in pairs}


def short_names(cases: Sequence[Case]) -> dict[str, str]:
    """By full name: the head, and the axes in which cases with that head differ. Unique again."""
    split = {c.name: _axes(c.name) for c in cases}
    values: dict[str, dict[str, set[str]]] = {}
    for head, axes in split.values():
        for axis, value in axes.items():
            values.setdefault(head, {}).setdefault(axis, set()).add(value)
    heads = [head for head, _ in split.values()]
    found = {}
    for name, (head, axes) in split.items():
        differ = [f"{axis}={value}" for axis, value in axes.items()
                  if len(values[head][axis]) > 1
                  or any(axis not in other for h, other in split.values() if h == head)]
        found[name] = " ".join([head, *differ]) if heads.count(head) > 1 or not axes else head
    return found if len(set(found.values())) == len(found) else {c.name: c.name for c in cases}
