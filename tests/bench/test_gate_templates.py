"""The CI templates: they parse, and every option that they pass exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expertile.bench.gate import MEANING
from expertile.bench.outputs import FORMATS
from expertile.cli import app

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def scripts() -> dict[str, str]:
    action: dict[str, Any] = yaml.safe_load((EXAMPLES / "gate-action" / "action.yml").read_text())
    gitlab: dict[str, Any] = yaml.safe_load((EXAMPLES / "gitlab-gate.yml").read_text())
    return {"action": "\n".join(s.get("run", "") for s in action["runs"]["steps"]),
            "gitlab": "\n".join(gitlab[".expertile-gate"]["script"]),
            "docs": (ROOT / "docs" / "bench.md").read_text()}


def of_the_command_line(text: str) -> str:
    """Without the lines of modules that are run by themselves, and of Otava's program."""
    return "\n".join(row for row in text.splitlines()
                     if "python -m expertile" not in row and "otava analyze" not in row)


@pytest.mark.parametrize("name", ["action", "gitlab", "docs"])
def test_options_and_formats_exist(name: str) -> None:
    text = of_the_command_line(scripts()[name])
    known = set()
    for verb in ("run", "compare", "gate", "report", "power", "history show", "history add",
                 "history export"):
        done = CliRunner().invoke(app, ["bench", *verb.split(), "--help"],
                                  env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        known |= set(re.findall(r"--[a-z][a-z-]+", done.output))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    used -= {"--disable-pip-version-check", "--expertile-bench-out", "--expertile-bench-base"}
    assert used and used <= known, used - known
    assert set(re.findall(r"--write (\w[\w-]*)=", text)) <= {*FORMATS, "FORMAT"}


def test_the_action_says_what_it_takes() -> None:
    action = yaml.safe_load((EXAMPLES / "gate-action" / "action.yml").read_text())
    used = set(re.findall(r"inputs\.(\w+)", str(action["runs"])))
    assert used == set(action["inputs"])
    for name in ("base", "suite"):
        assert action["inputs"][name]["description"]


def test_the_page_lists_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d) \| ([a-z ]+)", scripts()["docs"], re.MULTILINE)
    assert {int(code) for code, _ in rows} == set(MEANING)
