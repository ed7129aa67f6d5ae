"""Options that several verbs share, as one dataclass: a field is an option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A verb that takes one parameter of a dataclass, as typer can read it.

    The fields' annotations and defaults stand in the parameter's place, those of one default
    before the others' is no matter: all options are given by name.
    """
    hints = get_type_hints(command, include_extras=True)
    name, group = next((n, t) for n, t in hints.items() if is_dataclass(t))
    assert isinstance(group, type)
    types = get_type_hints(group, include_extras=True)
    members = [inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, annotation=types[f.name],
        default=inspect.Parameter.empty if f.default is MISSING else f.default)
        for f in fields(group)]

    @wraps(command)
    def takes_all(**given: Any) -> None:
        ours = {m.name: given.pop(m.name) for m in members}
        command(**{name: group(**ours)}, **given)

    others = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name])
              for p in inspect.signature(command).parameters.values() if p.name != name]
    parameters = [*others, *members]
    takes_all.__signature__ = inspect.Signature(parameters)      # type: ignore[attr-defined]
    takes_all.__annotations__ = {p.name: p.annotation for p in parameters}
    return takes_all
