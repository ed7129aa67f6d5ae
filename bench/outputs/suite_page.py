"""A suite's report as one HTML file without network: goals, limits, plots, cliffs, all cases."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape

from ..result import Result
from ..suites.table import Table, notes, tables
from .html import document

_COLOUR = {"met": "#1b6e3c", "not measured": "#8a6100"}


def _cell(text: str) -> str:
    colour = "#b3261e" if text.startswith("MISSED") else _COLOUR.get(text)
    style = f' style="color:{colour};font-weight:600"' if colour else ""
    return f"<td{style}>{escape(text)}</td>"


def _table(table: Table) -> str:
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    heads = "".join(f"<th>{escape(h)}</th>" for h in table.heads)
    rows = "".join(f"<tr>{''.join(_cell(c) for c in row)}</tr>" for row in table.rows)
    body = f"<table><tr>{heads}</tr>{rows}</table>" if table.rows else ""
    return f"<h2>{escape(table.title)}</h2>{note}{body}"


def _picture(title: str, png: bytes) -> str:
    data = b64encode(png).decode()
    return (f'<h2>{escape(title)}</h2><img alt="{escape(title)}" style="max-width:100%" '
            f'src="data:image/png;base64,{data}">')


def render(result: Result, plots: Mapping[str, bytes]) -> str:
    """The page; plots are PNG files by title."""
    suite = str(result.settings.get("suite", "suite"))
    tools = ", ".join(f"{k} {v}" for k, v in result.toolchain.get("head", {}).items())
    parts = [f"<h1>{escape(suite)}</h1>",
             f"<p>{escape(result.machine.model)}; {escape(result.machine.device)}; "
             f"{escape(result.created)}; <code>{escape(result.command)}</code></p>",
             f"<p>{escape(tools)}</p>", *(f"<p>{escape(n)}</p>" for n in notes(result))]
    found = tables(result)
    parts += [_table(t) for t in found[:2]]
    parts += [_picture(title, png) for title, png in plots.items()]
    parts += [_table(t) for t in found[2:]]
    return document(f"{suite}: {result.machine.device}", parts)
