"""`expertmesh keys`: the file of API keys that gateways read."""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from expertmesh.actors.gateway.access.key_file import (
    HASH_PREFIX,
    Entry,
    KeyFileError,
    Limits,
    parse_entries,
    read_bytes,
    write_entries,
)
from expertmesh.actors.gateway.access.keys import hash_of, new_key
from expertmesh.cli.errors import CliError, UsageError

ID_BYTES = 4


def create(path: Path, name: str, role: str, limits: Limits, expires: datetime | None) -> tuple[str, Entry]:
    """Draws a key and adds its hash to the file, which may have to be made; gives the key, and the entry.

    Raises:
        UsageError: a value that a key cannot have.
        CliError: the file cannot be read or written.
    """
    key = new_key()
    try:
        entry = Entry(
            id=secrets.token_hex(ID_BYTES),
            name=name,
            role=role,  # type: ignore[arg-type]  # checked right here
            hash=HASH_PREFIX + hash_of(key).hex(),
            expires=expires,
            limits=limits,
        )
    except ValidationError as error:
        details = error.errors()[0]
        raise UsageError(f"--{'-'.join(map(str, details['loc']))}: {details['msg']}") from None
    entries = entries_of(path) if path.exists() else []
    if any(known.name == name for known in entries):
        raise UsageError(
            f"--name: {path} has a key of the name {name!r} already; revoke it, or take another"
        )
    _write(path, [*entries, entry])
    return key, entry


def revoke(path: Path, which: str) -> Entry:
    """Takes the key with this id or name out of the file.

    Raises:
        UsageError: there is none.
        CliError: the file cannot be read or written.
    """
    entries = entries_of(path)
    found = [entry for entry in entries if which in (entry.id, entry.name)]
    if not found:
        raise UsageError(f"{path} has no key with the id or name {which!r}")
    _write(path, [entry for entry in entries if entry is not found[0]])
    return found[0]


def entries_of(path: Path) -> list[Entry]:
    """The keys of a file.

    Raises:
        CliError: it cannot be read or used.
    """
    try:
        return parse_entries(read_bytes(path).decode(errors="replace"), str(path))
    except KeyFileError as error:
        raise CliError(str(error)) from None


def show(path: Path, as_json: bool, console: Console) -> None:
    """Lists the keys, without their hashes."""
    rows = [entry.model_dump(mode="json", exclude={"hash"}) for entry in entries_of(path)]
    if as_json:
        console.file.write(json.dumps({"keys": rows}) + "\n")
        return
    table = Table("id", "name", "role", "expires", "requests/min", "tokens/min", "at once", box=None)
    for row in rows:
        limits = [f"{n:,}" if n else "-" for n in row["limits"].values()]
        table.add_row(row["id"], row["name"], row["role"], row["expires"] or "-", *limits)
    console.print(table)


def _write(path: Path, entries: list[Entry]) -> None:
    try:
        write_entries(path, entries)
    except KeyFileError as error:
        raise CliError(str(error)) from None
