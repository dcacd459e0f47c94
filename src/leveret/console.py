"""What a person sees: messages, tables and progress, on a terminal, in a pipe, and in a log file.

Messages and progress go to the error stream, so that the standard output carries only what a command was
asked for (`print` and `table`). Without a terminal, progress is one line every few seconds. A console is
passed as an argument; there is no global one. `rich` is imported when the first thing is shown.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console
    import rich.progress

LINE_EVERY_SECONDS = 5.0
"""Without a terminal, and in log files, progress is one line in this time."""
WIDTH_WITHOUT_TERMINAL = 120
"""Columns of tables in pipes and log files."""


class Console:
    """Shows things; `quiet` leaves out all but errors (a log file still gets everything)."""

    def __init__(self, *, quiet: bool = False, log: Path | None = None) -> None:
        self.quiet = quiet
        self.log = log

    def to_file(self, path: str | Path) -> Console:
        """A console that shows the same and also appends plain text with the time of day to the file `path`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Console(quiet=self.quiet, log=path)

    def info(self, text: str) -> None:
        """Say what is going on."""
        self._message(text)

    def warn(self, text: str) -> None:
        """Say what the user should know although the work goes on."""
        self._message(text, style="yellow", prefix="warning: ")

    def error(self, text: str) -> None:
        """Say what went wrong; shown even when quiet."""
        self._record(f"error: {text}")
        self._err.print(f"error: {text}", style="bold red", markup=False, highlight=False, soft_wrap=True)

    def rule(self, title: str) -> None:
        """A line across, with a title."""
        self._record(f"--- {title} ---")
        if not self.quiet:
            self._err.rule(title, style="dim")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Rows under column names; a column that holds only numbers is set to the right."""
        from rich.table import Table
        from rich.text import Text

        body = [list(row) for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
        for position, name in enumerate(columns):
            numeric = bool(body) and all(isinstance(row[position], int | float | None) for row in body)
            table.add_column(name, justify="right" if numeric else "left")
        for row in body:
            table.add_row(*(Text(_cell(value)) for value in row))
        self.print(table)

    def print(self, renderable: Any) -> None:
        """Put what was asked for on the standard output: a text as it is, or anything rich can draw."""
        if self.log is not None:
            self._record(renderable if isinstance(renderable, str) else self._plain(renderable))
        if self.quiet:
            return
        if isinstance(renderable, str):
            self._out.print(renderable, markup=False, highlight=False, soft_wrap=True)
        else:
            self._out.print(renderable)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None, unit: str = "it", *, start: int = 0) -> Iterator[Progress]:
        """Progress of a long job that has done `start` of `total` units; yields what to report to.

        with console.progress("pretrain", total=100, unit="step") as progress:
            progress.update(1, loss=9.01)
        """
        bar = None if self.quiet or not self._err.is_terminal else _bar(self._err)
        progress = Progress(self, description, total, unit, start, bar)
        try:
            if bar is not None:
                bar.start()
            yield progress
        finally:
            if bar is not None:
                bar.stop()
            progress.close()

    def show_line(self, text: str, *, on_screen: bool) -> None:
        """A line of progress: always into the log, and onto the screen where no bar is drawn."""
        self._record(text)
        if on_screen and not self.quiet:
            self._err.print(text, markup=False, highlight=False, soft_wrap=True)

    @cached_property
    def _out(self) -> rich.console.Console:
        from rich.console import Console as RichConsole

        screen = RichConsole()
        return screen if screen.is_terminal else RichConsole(width=WIDTH_WITHOUT_TERMINAL)

    @cached_property
    def _err(self) -> rich.console.Console:
        from rich.console import Console as RichConsole

        return RichConsole(stderr=True)

    def _message(self, text: str, *, style: str | None = None, prefix: str = "") -> None:
        self._record(prefix + text)
        if not self.quiet:
            self._err.print(prefix + text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _record(self, text: str) -> None:
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def _plain(self, renderable: Any) -> str:
        from rich.console import Console as RichConsole

        page = RichConsole(file=StringIO(), width=WIDTH_WITHOUT_TERMINAL, color_system=None)
        with page.capture() as capture:
            page.print(renderable)
        return "\n" + capture.get().rstrip()


class Progress:
    """The progress of one job; made by `Console.progress`."""

    def __init__(
        self,
        console: Console,
        description: str,
        total: int | None,
        unit: str,
        start: int,
        bar: rich.progress.Progress | None,
    ) -> None:
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._start, self._completed, self._fields = start, start, ""
        self._began = self._last_line = time.monotonic()
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=start, detail="") if bar else None

    def update(self, completed: int, **fields: object) -> None:
        """Report that `completed` units are done; `fields` (loss=2.31, tokens=4096 ...) are shown beside."""
        self._completed = completed
        self._fields = "  ".join(f"{name} {_cell(value)}" for name, value in fields.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=completed, detail=self._detail())
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            self._console.show_line(self._line(), on_screen=self._bar is None)

    def close(self) -> None:
        """Show where the job ended and what it took."""
        seconds = time.monotonic() - self._began
        self._console.show_line(f"{self._line()}  took {duration(seconds)}", on_screen=True)

    def _line(self) -> str:
        of = "" if self._total is None else f"/{self._total:,}"
        return f"{self._description}: {self._completed:,}{of} {self._unit}  {self._detail()}".rstrip()

    def _detail(self) -> str:
        """Rate since the start of this process (work done before it does not count), time left, fields."""
        done, seconds = self._completed - self._start, time.monotonic() - self._began
        parts = []
        if done > 0 and seconds > 0:
            rate = done / seconds
            parts.append(f"{rate:,.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self._unit}")
            if self._total is not None and self._completed < self._total:
                parts.append(f"{duration((self._total - self._completed) / rate)} left")
        return "  ".join([*parts, self._fields] if self._fields else parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8.1 s`, `2 min 05 s`, `1 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _bar(screen: rich.console.Console) -> rich.progress.Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
    return Progress(*columns, console=screen, transient=True)
