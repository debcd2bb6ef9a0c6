"""How a command fails: one clear line, never a traceback."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
"""Wrong options, a wrong deployment file or checkpoint, a request that the server calls invalid."""
EXIT_INTERRUPTED = 130


class CliError(Exception):
    """Ends a command with a message for its user."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CliError):
    """The command cannot be carried out as it was given."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_USAGE)
