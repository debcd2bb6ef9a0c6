"""What can keep weights from being loaded."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint that cannot be served; the message names the file and the tensor or key.

    The arguments are plain values, so that the error survives a trip between processes.
    """

    def __init__(self, file: Path, problem: str, item: str | None = None) -> None:
        super().__init__(file, problem, item)
        self.file = file
        self.problem = problem
        self.item = item

    def __str__(self) -> str:
        where = f"{self.file}: {self.item}" if self.item else str(self.file)
        return f"{where}: {self.problem}"


class LoadCancelledError(Exception):
    """Weights that were being read are not wanted any more; the message says why."""
