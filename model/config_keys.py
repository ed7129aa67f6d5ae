"""Reads keys of a model directory's JSON files, with errors that name file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError names the file that is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a model directory must hold it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} cannot be read as JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def need(c: Mapping[str, Any], key: str) -> Any:
    """A key that every model of the family must state."""
    if key not in c:
        raise ValueError(f"config.json: key {key!r} is missing; a {c.get('model_type', 'DeepSeek')}"
                         f" model must state it")
    return c[key]


def size(c: Mapping[str, Any], key: str, at_least: int = 1, multiple: int = 1,
         null: int | None = None) -> int:
    """An integer key; `null` is what a JSON null means, if it may be null."""
    value = need(c, key)
    if value is None and null is not None:
        return null
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least \
            or value % multiple:
        rule = f"an integer >= {at_least}" + (f", a multiple of {multiple}" * (multiple > 1))
        raise ValueError(f"config.json: {key} must be {rule}, got {value!r}")
    return value


def number(c: Mapping[str, Any], key: str) -> float:
    """A key with a positive number."""
    value = need(c, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"config.json: {key} must be a positive number, got {value!r}")
    return float(value)


def mapping(c: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A key with a JSON object; empty where it is absent or null."""
    value = c.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"config.json: {key} must be a JSON object, got {value!r}")
    return value


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """One token, several or none."""
    if value is None:
        return ()
    return tuple(dict.fromkeys(value)) if isinstance(value, list) else (value,)
