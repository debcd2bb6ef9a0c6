"""One line that says what is being waited for; in a terminal it changes in place."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 24


class Progress:
    """Use as a context manager; `show` whenever there is news."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._started_s = time.monotonic()
        self._shown = ""

    @property
    def in_place(self) -> bool:
        """Whether the line changes in place (else every change is a new line)."""
        return self._status is not None

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, text: str, fraction: float | None = None) -> None:
        """Says what is being waited for now; `fraction` of it is done, where that is known."""
        if self._status is not None:
            line = Text.from_markup(f"{escape(text)} [dim]{time.monotonic() - self._started_s:.0f} s[/]")
            if fraction is None:
                self._status.update(line)
            else:
                grid = Table.grid(padding=(0, 1))
                grid.add_row(ProgressBar(total=1.0, completed=fraction, width=BAR_WIDTH), line)
                self._status.update(grid)
        elif text != self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._shown = text
