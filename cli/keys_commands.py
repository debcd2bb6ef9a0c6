"""The options of `expertmesh keys`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(name="keys", help="Make, list and revoke API keys.", no_args_is_help=True)


class Role(StrEnum):
    """`--role`"""

    USER = "user"
    ADMIN = "admin"


FileOption = Annotated[
    Path, typer.Option("--file", metavar="FILE", help="The key file, as in `access.key_file`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command()
def create(
    file: FileOption,
    name: Annotated[str, typer.Option("--name", help="Whose it is; stands in logs and metrics.")],
    role: Annotated[Role, typer.Option("--role", help="An admin also changes the cluster.")] = Role.USER,
    requests_per_minute: Annotated[int | None, typer.Option("--requests-per-minute", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", min=1, help="Of prompts and answers.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Requests at once.")] = None,
    expires: Annotated[
        datetime | None, typer.Option("--expires", help="In UTC; from then on it does not count.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a key, print it this once, and add its hash to the file."""
    from expertmesh.actors.gateway.access.key_file import Limits
    from expertmesh.cli import keys

    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent,
    )
    key, entry = keys.create(file, name, role.value, limits, expires)
    if as_json:
        print(json.dumps({"key": key, "id": entry.id, "name": entry.name, "role": entry.role}))
        return
    print(key)
    print(f"key {entry.id} of {name!r} ({entry.role}); it is shown this once", file=sys.stderr)


@app.command("list")
def list_keys(file: FileOption, as_json: JsonOption = False) -> None:
    """List the keys of the file, without the keys."""
    from expertmesh.cli import keys

    keys.show(file, as_json, Console())


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID", help="The key's id or name.")], file: FileOption
) -> None:
    """Take a key out of the file: what it has begun ends well, and nothing new begins."""
    from expertmesh.cli import keys

    entry = keys.revoke(file, which)
    print(f"key {entry.id} of {entry.name!r} is revoked", file=sys.stderr)
