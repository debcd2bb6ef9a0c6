"""The API key that a command calls a deployment with."""

from __future__ import annotations

from pathlib import Path

from expertmesh.cli.errors import UsageError
from expertmesh.configs.environment import API_KEY_VARIABLE, Environment


def read_key(file: Path | None) -> str:
    """The key in the file, else the environment's; empty when there is neither.

    Raises:
        UsageError: the file cannot be read, or holds no key.
    """
    if file is None:
        key, source = Environment.read().api_key, API_KEY_VARIABLE
    else:
        source = f"--api-key-file: {file}"
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: cannot be read: {error}") from None
        if not key:
            raise UsageError(f"{source}: holds no key")
    if len(key.split()) > 1 or not key.isascii():
        raise UsageError(f"{source}: must hold one key and nothing else")
    return key
