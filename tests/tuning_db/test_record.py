"""Records: JSON there and back, and strictness against what is not one."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest

from expertile.targets.base import Evidence
from expertile.tuning_db.record import EVIDENCE, Record
from tests.tuning_db.records import candidate, winner


def test_round_trip() -> None:
    for record in (winner(), candidate(1), candidate(2, status="timeout", us=None, samples=(),
                                                     error="ran longer than 60 s")):
        assert Record.from_text(record.text) == record
        assert Record.from_text(record.text).text == record.text


def test_evidence_levels_are_those_of_targets() -> None:
    assert get_args(Evidence) == EVIDENCE


@pytest.mark.parametrize(("path", "value", "rule"), [
    (("us",), float("nan"), "finite"), (("us",), -1.0, "us must be"), (("us",), "7", "us must be"),
    (("us",), None, "must have us"), (("us",), True, "us must be"),
    (("status",), "great", "status must be"), (("role",), "loser", "role must be"),
    (("decision",), None, "has a decision"), (("evidence",), "L9", "evidence must be"),
    (("config",), [1], "config must map"), (("config",), {"a": [1]}, "config must map"),
    (("samples",), 3, "samples must be"), (("samples",), [1.0, "x"], "samples must be"),
    (("speedup_ci",), [1.0], "speedup_ci"), (("surprise",), 1, "unknown fields"),
    (("key", "surprise"), 1, "unknown fields"), (("key", "op"), 3, "key.op"),
    (("key", "static"), None, "key.static"), (("key", "toolchain"), {"tvm": 1}, "toolchain"),
    (("key",), "x", "JSON object"), (("provenance", "seed"), "x", "provenance.seed"),
    (("provenance", "host"), "x", "unknown fields"), (("equivalents",), [3], "config must map"),
], ids=str)
def test_what_is_not_a_record_is_refused(path: tuple[str, ...], value: Any, rule: str) -> None:
    data = copy.deepcopy(winner().to_json())
    at = data
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    with pytest.raises(ValueError, match=rule):
        Record.from_json(data)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"us": NaN}', "[" * 100_000, "x" * (1 << 21)],
                         ids=lambda t: t[:8])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Record.from_text(text)


def test_missing_field_is_named() -> None:
    data = winner().to_json()
    del data["config"]
    with pytest.raises(ValueError, match=r"must have the fields \['config'\]"):
        Record.from_json(data)
