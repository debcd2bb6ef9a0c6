"""Where a process has the cluster's secret from."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

MIN_CHARS = 16
SECRET_BYTES = 32


class SecretError(Exception):
    """There is no usable secret; the message names the file and what is wrong, never the secret."""


def new_secret() -> str:
    """A secret that nobody knows."""
    return secrets.token_hex(SECRET_BYTES)


class HeldSecret:
    """A secret that this process was told. Before that nobody is let in.

    When it is told another one, the one before still counts: others may hear of it later.
    """

    def __init__(self) -> None:
        self._held: tuple[str, ...] = ()

    def __call__(self) -> Sequence[str]:
        return self._held

    @property
    def current(self) -> str:
        """The newest; empty before there is one."""
        return self._held[0] if self._held else ""

    def tell(self, secret: str) -> None:
        """This is the secret now."""
        if secret != self.current:
            self._held = (secret, *self._held[:1])


class FileSecret:
    """The secrets of a file: a line each, the first to present, all of them accepted.

    The file is read for every call, so that a change of it counts at once: streams are few. When it cannot
    be used, what was read last goes on.

    Args:
        path: the file.

    Raises:
        SecretError: it cannot be used to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = read_secrets(path)
        self._problem = ""

    def __call__(self) -> Sequence[str]:
        try:
            self._last, self._problem = read_secrets(self._path), ""
        except SecretError as error:
            if str(error) != self._problem:
                logger.error("the last good cluster secret goes on: %s", error)
            self._problem = str(error)
        return self._last


def read_secrets(path: Path) -> tuple[str, ...]:
    """The secrets in a file.

    Raises:
        SecretError: it cannot be read, or holds none, or one that is too short.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"{path}: cannot be read: {error}") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise SecretError(f"{path}: holds no secret")
    if any(len(secret) < MIN_CHARS for secret in found):
        raise SecretError(f"{path}: a secret has fewer than {MIN_CHARS} characters")
    return found
