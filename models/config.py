"""Typed access to a checkpoint's JSON files: every complaint names the file and the key.

No torch here. A key that holds null counts as absent: transformers writes nulls for unset options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from expertmesh.models.errors import CheckpointError


def read_json(file: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, no JSON, or not an object.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(file, "the file is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(file, f"the file cannot be read: {error}") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(file, f"no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(file, "a JSON object is needed at the top")
    return value


class ConfigFile:
    """A checkpoint's config.json, or one section of it."""

    def __init__(self, file: Path, values: Mapping[str, object], prefix: str = "") -> None:
        self.file = file
        self._values = values
        self._prefix = prefix

    @classmethod
    def read(cls, file: Path) -> ConfigFile:
        """Reads the file; see `read_json` for its errors."""
        return cls(file, read_json(file))

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error to raise about a key."""
        return CheckpointError(self.file, problem, f"key {self._prefix + key!r}")

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._values.get(key) is not None

    def section(self, key: str) -> ConfigFile | None:
        """The object under a key, None when absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"an object is needed, not {value!r}")
        return ConfigFile(self.file, value, f"{self._prefix}{key}.")

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; without a default the key must be there."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(key, f"a whole number of at least {minimum} is needed, not {value!r}")
        return value

    def optional_integer(self, key: str, *, minimum: int = 1) -> int | None:
        """A whole number, None when absent."""
        return self.integer(key, minimum=minimum) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, whole or not."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise self.error(key, f"a number is needed, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"true or false is needed, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"a string is needed, not {value!r}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """One of some strings; anything else is a feature that is not supported."""
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(key, f"{value!r} is not supported; supported: {', '.join(allowed)}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A whole number or a list of them, as a tuple; empty when absent."""
        value = self._values.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            raise self.error(key, f"a whole number or a list of them is needed, not {value!r}")
        return tuple(items)

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; the key must be there."""
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"a list of strings is needed, not {value!r}")
        return tuple(value)

    def _value(self, key: str, default: object) -> object:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.error(key, "the key is missing")
        return default
