"""`expertmesh status`: who serves, and how much each has done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from expertmesh.cli import display
from expertmesh.cli.endpoint import Endpoint
from expertmesh.proto.v1 import inference_pb2 as pb


def run(
    address: str, app: str | None, timeout_s: float, as_json: bool, console: Console, key: str = ""
) -> None:
    """The command, once its options are parsed."""
    with Endpoint(address, app, key) as endpoint:
        topology, models = endpoint.topology(timeout_s), endpoint.models(timeout_s)
    if as_json:
        console.file.write(status_json(topology, models) + "\n")
    else:
        print_status(console, topology, models)


def status_json(topology: pb.Topology, models: Iterable[pb.Model]) -> str:
    """Topology and models as one JSON object, in the fields of the gRPC messages; numbers stay numbers."""
    return json.dumps({"topology": _plain(topology), "models": [_plain(model) for model in models]})


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return {f.name: _field(value, f) for f in value.DESCRIPTOR.fields}
    if isinstance(value, str | int | float | bool):
        return value
    return [_plain(item) for item in value]


def _field(message: Message, field: Any) -> Any:
    absent = field.has_presence and not message.HasField(field.name)
    return None if absent else _plain(getattr(message, field.name))


def print_status(console: Console, topology: pb.Topology, models: Iterable[pb.Model]) -> None:
    """The same for people."""
    reason = f" ({topology.reason})" if topology.reason else ""
    console.print(f"generation {topology.generation}: {topology.state}{reason}", highlight=False)
    if topology.stale:
        console.print("[yellow]the coordinator cannot be asked now; this is what it said last[/]")
    for model in models:
        tokenizer = "" if model.has_tokenizer else ", no tokenizer: token-id prompts only"
        console.print(
            f"model {model.name}: {model.architecture}, up to {model.max_context_tokens} tokens{tokenizer}",
            highlight=False,
        )
    if n_drafts := sum(member.draft_tokens for member in topology.routers):
        n_accepted = sum(member.accepted_tokens for member in topology.routers)
        console.print(
            f"speculation: {n_accepted:,} of {n_drafts:,} drafts accepted ({n_accepted / n_drafts:.1%})",
            highlight=False,
        )
    for line in display.change_lines(topology, time.time()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table("rank", "role", "node", "pid", "device", "tokens", "share", box=None)
    table.columns[5].justify = table.columns[6].justify = "right"
    for role, members in (("router", topology.routers), ("experts", topology.experts)):
        total = sum(member.tokens for member in members)
        for member in members:
            share = f"{100 * member.tokens / total:.1f} %" if total else "-"
            table.add_row(
                str(member.rank), role, member.node[:12], str(member.pid), member.device,
                f"{member.tokens:,}", share,
            )  # fmt: skip
    console.print(table)
