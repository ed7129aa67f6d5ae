"""Progress of a tune: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from ..opt.outcome import Event

_LINE_EVERY_S = 5.0                  # without a terminal


class TuneProgress:
    """Draws the events of a tune: shape i/n, trials, best so far against the default, time left."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal)
        self._shapes = self._bars.add_task("shapes", total=None, note="")
        self._trials = self._bars.add_task("configs", total=None, note="")
        self._said = 0.0

    def __enter__(self) -> TuneProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        note = self._note(event)
        self._bars.update(self._shapes, total=event.shapes, note=event.op,
                          completed=event.index + (event.kind == "done"))
        self._bars.update(self._trials, total=event.of, completed=event.trials, note=note)
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if event.kind in ("shape", "done") or now - self._said > _LINE_EVERY_S:
            self._said = now
            self._console.print(f"[{event.index + 1}/{event.shapes}] {event.op} {event.kind} "
                                f"{event.trials}/{event.of} {note}", soft_wrap=True,
                                highlight=False, markup=False)

    @staticmethod
    def _note(event: Event) -> str:
        parts = []
        if event.best_us and event.default_us:
            parts.append(f"best {event.best_us:.1f} us, default {event.default_us:.1f} us")
        if event.status not in ("", "ok"):
            parts.append(event.status)
        if event.seconds_left is not None:
            parts.append(f"{event.seconds_left:.0f} s left")
        return ", ".join(parts)
