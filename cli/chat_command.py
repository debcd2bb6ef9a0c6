"""The options of `expertmesh chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expertmesh.cli.api_key import read_key

DEFAULT_URL = "http://127.0.0.1:8000"


def chat(
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this alone, and end after the answer.")
    ] = None,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="The deployment's HTTP address.")
    ] = DEFAULT_URL,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="Holds the API key; else EXPERTMESH_API_KEY does."
        ),
    ] = None,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system message.")] = "",
    model: Annotated[str, typer.Option("--model", help="The served model's name.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Of each answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.001, help="The longest silence within an answer.")
    ] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="The one answer as a JSON object.")] = False,
) -> None:
    """Chat with a deployment in the terminal; with --message, or with text on stdin, get one answer."""
    from expertmesh.cli import chat as command
    from expertmesh.cli.chat_client import ChatClient

    given = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    params = {name: value for name, value in given.items() if value is not None}
    client = ChatClient(url, read_key(api_key_file), timeout_s, params)
    conversation = command.Conversation(client, system)
    if message is None and not as_json and command.in_terminal():
        command.run_interactive(conversation, Console(), command.read_terminal_line)
    else:
        text = sys.stdin.read() if message is None else message
        command.run_once(conversation, text, as_json, sys.stdout, sys.stderr)
