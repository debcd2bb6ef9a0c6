"""The file that API keys stand in.

```yaml
keys:
- id: 7f3a9c21
  name: batch-jobs
  role: user
  hash: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  expires: 2027-01-31T00:00:00Z
  limits: {requests_per_minute: 600, tokens_per_minute: 200000, concurrent_requests: 32}
```
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from expertmesh.actors.gateway.access.keys import ApiKey, KeyLimits, Keyring
from expertmesh.actors.gateway.access.level import ROLES

HASH_PREFIX = "sha256:"


class KeyFileError(Exception):
    """The file cannot be used; the message names it and what is wrong."""


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Limits(BaseModel):
    """The limits of a key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent_requests: int | None = Field(default=None, ge=1)


class Entry(BaseModel):
    """One key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=128)
    role: Literal["user", "admin"]
    hash: str = Field(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")
    expires: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    limits: Limits = Limits()

    def to_key(self) -> ApiKey:
        """The key as the gateway holds it."""
        digest = bytes.fromhex(self.hash.removeprefix(HASH_PREFIX))
        limits = KeyLimits(**self.limits.model_dump())
        return ApiKey(self.id, self.name, ROLES[self.role], digest, self.expires, limits)


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[Entry]


def parse_entries(text: str, source: str) -> list[Entry]:
    """The entries of a key file.

    Args:
        text: the file's.
        source: its name, for errors.

    Raises:
        KeyFileError: names the file, the entry and what is wrong; never a hash.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        raise KeyFileError(f"{source}{f':{mark.line + 1}' if mark else ''}: is not YAML") from None
    try:
        entries = KeyFile.model_validate(content).keys
    except ValidationError as error:
        details = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in details["loc"])
        raise KeyFileError(f"{source}: {place or 'keys'}: {details['msg']}") from None
    for field in ("id", "hash"):
        values = [getattr(entry, field) for entry in entries]
        twice = next((entry.id for entry in entries if values.count(getattr(entry, field)) > 1), None)
        if twice is not None:
            raise KeyFileError(f"{source}: two keys have the {field} of {twice!r}")
    return entries


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Puts a file with these entries in the place of what is there; only its owner may read a new one.

    Raises:
        KeyFileError: it cannot be written.
    """
    content = {"keys": [entry.model_dump(mode="json", exclude_defaults=True) for entry in entries]}
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            try:
                yaml.safe_dump(content, file, sort_keys=False)
                os.chmod(file.name, mode)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def read_keyring(path: Path) -> Keyring:
    """The keys of a file.

    Raises:
        KeyFileError: it cannot be read or used.
    """
    return keyring_of(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None


def keyring_of(content: bytes, path: Path) -> Keyring:
    """The keys of a file with this content.

    Raises:
        KeyFileError: it cannot be used.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is not UTF-8 text") from None
    return Keyring(entry.to_key() for entry in parse_entries(text, str(path)))
