"""Keeps the keys of a running gateway as the file has them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from expertmesh.actors.gateway.access.key_file import KeyFileError, keyring_of, read_bytes
from expertmesh.actors.gateway.access.keys import Keyring

logger = logging.getLogger(__name__)


class KeyWatch:
    """The keys of a file that may be written anew, or be swapped behind a link as Kubernetes does.

    What cannot be used changes nothing: the last good keys go on, and `error` says why.

    Args:
        path: the file.

    Raises:
        KeyFileError: it cannot be used to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = read_bytes(path)
        self._keyring = keyring_of(content, path)
        self._digest = hashlib.sha256(content).digest()
        self._task: asyncio.Task[None] | None = None
        self.error = ""
        """Why the file as it is now does not count; empty when it does."""

    def keyring(self) -> Keyring:
        """The keys that count now."""
        return self._keyring

    def start(self, every_s: float) -> None:
        """Looks at the file again and again, in the background of the running event loop."""
        self._task = asyncio.create_task(self._watch(every_s), name=f"keys of {self._path}")

    async def close(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> bool:
        """Reads the file; whether other keys count now.

        Times and inodes would miss a change within a clock's tick; the file is small.
        """
        try:
            content = read_bytes(self._path)
            digest = hashlib.sha256(content).digest()
            if digest == self._digest and not self.error:
                return False
            keyring = keyring_of(content, self._path)
        except KeyFileError as error:
            if str(error) != self.error:
                logger.error("the last good API keys go on: %s", error)
            self.error = str(error)
            return False
        changed = digest != self._digest
        self._keyring, self._digest, self.error = keyring, digest, ""
        logger.info("%d API keys from %s", len(keyring.keys), self._path)
        return changed

    async def _watch(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)
