"""One line that says what is being waited for; in a terminal it changes in place."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape


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

    def show(self, text: str) -> None:
        """Says what is being waited for now."""
        if self._status is not None:
            self._status.update(f"{escape(text)} [dim]{time.monotonic() - self._started_s:.0f} s[/]")
        elif text != self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._shown = text
