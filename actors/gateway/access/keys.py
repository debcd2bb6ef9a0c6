"""API keys as the gateway knows them: by their hashes.

A key is drawn from 256 random bits, so nobody can guess one from its hash: a fast hash is enough. A slow
one, made for what people think up, would take its time at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from expertmesh.actors.gateway.access.level import Access

KEY_PREFIX = "em-"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much one key may use, over all gateways; None is without a limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers."""
    concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of one key."""

    id: str
    name: str
    """Whose it is; stands in logs and metrics, where the key never does."""
    access: Access
    sha256: bytes = field(repr=False)
    expires: datetime | None = None
    """With a time zone."""
    limits: KeyLimits = KeyLimits()


class Keyring:
    """The keys that are accepted."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self.keys = tuple(keys)

    def find(self, presented: str) -> ApiKey | None:
        """The key, expired or not; None when there is no such.

        Every hash is compared, and each in constant time: how long it takes tells nothing.
        """
        digest = hash_of(presented)
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found


def new_key() -> str:
    """A key that nobody has had before."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(presented: str) -> bytes:
    """The SHA-256 of a key as it is presented."""
    return hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
