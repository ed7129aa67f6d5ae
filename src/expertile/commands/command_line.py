"""The command as records keep it: for others to read, so without this machine's paths."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_WHERE = ("--db", "--storage", "--out")      # where results go; a URL may hold a password


def command_line(arguments: Sequence[str] | None = None) -> str:
    """This process's command, without where its results go; absolute paths become names."""
    kept, skip = ["expertile"], False
    for word in sys.argv[1:] if arguments is None else arguments:
        option, equals, value = word.partition("=")
        if skip or option in _WHERE:
            skip = not skip and not equals
        elif equals and value.startswith("/"):
            kept.append(f"{option}={Path(value).name}")
        else:
            kept.append(Path(word).name if word.startswith("/") else word)
    return shlex.join(kept)
