"""An exhaustive tune as a landscape file, and the landscapes that ship with the package."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..ops.space import Config, Knob, config_text
from ..targets.replay import FORMAT
from ..tuning_db.record import Record
from .stats import low

FOLDER = Path(__file__).parent / "landscapes"
HOW = ("us = default_us times the config's time over the default's in the same interleaved "
       "rounds: the median of the rounds' ratios or the ratio of the low quantiles, whichever "
       "flatters less")


def shipped() -> dict[str, Path]:
    """Landscapes of this package's own operators on a CPU, by name."""
    return {p.name.split(".")[0]: p for p in sorted(FOLDER.glob("*.json*"))}


def find(file: str | Path) -> Path:
    """A path, or the landscape that ships under this name."""
    path = Path(file)
    return path if path.exists() else shipped().get(str(file), path)


def load(path: Path) -> dict[str, Any]:
    """A landscape file of ours with all that it says; ValueError for any other file."""
    try:
        data = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz"
                          else path.read_bytes())
    except (OSError, EOFError, zlib.error, ValueError) as e:
        raise ValueError(f"{path} is no landscape: {e}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no landscape of format {FORMAT!r}")
    return data


def landscape_of(rows: Sequence[Record]) -> dict[str, Any]:
    """The landscape of a key whose every config was tried.

    Args:
        rows: all records of one key: its candidates and its winner.

    Raises:
        ValueError: the tune has not finished, some configs were never tried, or nothing is right.
    """
    winner = next((r for r in rows if r.role == "winner"), None)
    trials = [r for r in rows if r.role == "candidate"]
    if winner is None or winner.provenance.pool != len(trials):
        raise ValueError(
            f"a landscape holds every config of its space, but of {trials[0].key.op} "
            f"{len(trials)} of {winner.provenance.pool if winner else 'an unknown number of'} were "
            "tried; run tune again with --sampler exhaustive and as many --trials")
    if winner.is_modelled:
        raise ValueError("a landscape holds measured times, and these are modelled")
    default = next((r.config for r in trials if r.us and r.samples == r.default_samples), None)
    if default is None:
        raise ValueError("a landscape needs its default's time, and no row is the default's")
    default_us = low([r.default_us for r in trials if r.default_us])
    ordered = sorted(trials, key=lambda r: (r.config != default, config_text(r.config)))
    made = winner.provenance
    return {
        "format": FORMAT, "op": winner.key.op, "shape": winner.key.shape,
        "routing": winner.key.routing, "device": winner.key.device, "machine": made.machine,
        "recorded": made.time, "command": made.command, "tool": made.tool,
        "versions": dict(made.versions), "source": winner.key.source, "how": HOW,
        "default_us": float(f"{default_us:.5g}"), "knobs": _knobs(trials, default),
        "entries": [_entry(r, default_us) for r in ordered]}


def _knobs(trials: Sequence[Record], default: Config) -> dict[str, list[Knob]]:
    """The default's choice first, as in a space."""
    return {k: [value, *sorted({r.config[k] for r in trials if r.config[k] != value},
                               key=lambda v: (str(type(v)), v))]
            for k, value in default.items()}


def _entry(row: Record, default_us: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"config": dict(row.config)}
    if row.us:
        rounds = median(a / b for a, b in zip(row.samples, row.default_samples, strict=True))
        ratio = max(rounds, row.us / (row.default_us or row.us))
        return {**entry, "us": float(f"{ratio * default_us:.5g}")}
    return {**entry, "status": row.status, "error": row.error[:200]}


def text_of(landscape: dict[str, Any]) -> str:
    """JSON with an entry a line, so that a change can be reviewed."""
    head = json.dumps({k: v for k, v in landscape.items() if k != "entries"}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(entry) for entry in landscape["entries"])
    return f'{head},\n "entries": [\n{lines}\n]}}\n'
