"""Key files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from expertmesh.actors.gateway.access.keys import hash_of


def entry(key: str, role: str = "user", name: str = "", **settings: Any) -> dict[str, Any]:
    """What stands in a key file for a key."""
    name = name or f"{role}-{key[:6]}"
    return {
        "id": f"id-{name}",
        "name": name,
        "role": role,
        "hash": f"sha256:{hash_of(key).hex()}",
    } | settings


def key_text(*entries: dict[str, Any]) -> str:
    """A key file with these entries."""
    return yaml.safe_dump({"keys": list(entries)})


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    """Writes a key file as `expertmesh keys` and Kubernetes do: it is never seen half-written."""
    new = path.with_suffix(".new")
    new.write_text(key_text(*entries))
    new.replace(path)
    return path
