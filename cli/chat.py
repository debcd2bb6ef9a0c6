"""`expertmesh chat`: a conversation with a deployment in the terminal, or one answer in a pipe."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console

from expertmesh.cli.chat_client import ChatClient, Message, Piece
from expertmesh.cli.errors import CliError, UsageError

PROMPT, MORE = ">>> ", "... "
BLOCK = '"""'
HELP = '''\
/reset         forget the conversation, but for the system message
/system TEXT   set the system message, and forget the conversation; without TEXT there is none
/help          this
/exit          end, as Ctrl-D does
A line that ends in \\ goes on in the next; """ begins and ends a text of several lines.
Ctrl-C stops an answer.'''
MIN_RATE_S = 1e-3
"""No rate is given for less time than this."""

ReadLine = Callable[[str], str]
"""Shows a prompt and gives the line typed; `EOFError` at the end, `KeyboardInterrupt` at Ctrl-C."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Answer:
    """What has come of an answer."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped: bool = False

    def add(self, piece: Piece) -> None:
        """Takes in the next part."""
        self.content += piece.content
        self.reasoning += piece.reasoning
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.completion_tokens = piece.completion_tokens or self.completion_tokens

    def summary(self) -> str:
        """One line: tokens, seconds, tokens/s."""
        if self.stopped:
            return f"stopped after {self.seconds:.2f} s"
        rate = self.completion_tokens / max(self.seconds, MIN_RATE_S)
        ending = f", ended by {self.finish_reason}" if self.finish_reason != "stop" else ""
        return (
            f"{self.completion_tokens} tokens in {self.seconds:.2f} s, {rate:.1f} tokens/s "
            f"(prompt: {self.prompt_tokens} tokens{ending})"
        )

    def as_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(
            {
                "content": self.content,
                "reasoning": self.reasoning,
                "finish_reason": self.finish_reason,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "seconds": round(self.seconds, 6),
                "tokens_per_second": round(self.completion_tokens / max(self.seconds, MIN_RATE_S), 3),
            },
            ensure_ascii=False,
        )


@dataclass
class Conversation:
    """What has been said so far."""

    client: ChatClient
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def ask(self, text: str, show: Callable[[Piece], None]) -> Answer:
        """Gets the answer to the next message. Ctrl-C ends the answer, and what has come of it stands.

        Raises:
            CliError: there is no answer; the message is not part of the conversation then.
        """
        question = {"role": "user", "content": text}
        system = [{"role": "system", "content": self.system}] if self.system else []
        answer = Answer()
        started_s = time.monotonic()
        pieces = self.client.answer([*system, *self.turns, question])
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
                for piece in pieces:
                    answer.add(piece)
                    show(piece)
        except KeyboardInterrupt:
            answer.stopped = True
        answer.seconds = time.monotonic() - started_s
        if answer.content or not answer.stopped:
            # Reasoning is for the turn that it was made in: chat templates leave it out of earlier ones.
            self.turns += [question, {"role": "assistant", "content": answer.content}]
        return answer


def run_interactive(conversation: Conversation, console: Console, read_line: ReadLine) -> None:
    """The chat in a terminal, until its end is typed.

    Raises:
        CliError: the deployment cannot be reached at all.
    """
    model = ", ".join(conversation.client.models())
    _tell(console, f"{model} at {conversation.client.url}; /help tells the commands, Ctrl-D ends")
    for text in _typed(read_line, console):
        command, _, argument = text.partition(" ")
        match command:
            case "/exit" | "/quit":
                return
            case "/help":
                _tell(console, HELP)
            case "/reset":
                conversation.turns.clear()
                _tell(console, "the conversation is forgotten")
            case "/system":
                conversation.system = argument.strip()
                conversation.turns.clear()
                _tell(
                    console,
                    "a new conversation" + ("" if conversation.system else ", without a system message"),
                )
            case _ if re.fullmatch(r"/\w+", command):
                _tell(console, f"there is no command {command}; /help tells them")
            case _:
                _turn(conversation, text, console)


def run_once(conversation: Conversation, text: str, as_json: bool, out: TextIO, err: TextIO) -> None:
    """One answer: its content alone on `out`, the rest on `err`.

    Raises:
        UsageError: there is no message.
        CliError: there is no answer.
        KeyboardInterrupt: it was stopped.
    """
    if not text.strip():
        raise UsageError("the message is empty: give --message, or write one to stdin")

    def show(piece: Piece) -> None:
        if not as_json:
            _write(err, piece.reasoning)
            _write(out, piece.content)

    answer = conversation.ask(text, show)
    if answer.stopped:
        raise KeyboardInterrupt
    if as_json:
        print(answer.as_json(), file=out)
    else:
        print(file=out, flush=True)
        print(answer.summary(), file=err)


def read_terminal_line(prompt: str) -> str:
    """`input` with editing and the history of what was typed."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # `input` uses it once it is loaded
    return input(prompt)


def in_terminal() -> bool:
    """Whether somebody can type."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _turn(conversation: Conversation, text: str, console: Console) -> None:
    shown = _Shown(console)
    try:
        answer = conversation.ask(text, shown.piece)
    except CliError as error:
        shown.end()
        console.print(str(error), style="red", markup=False, highlight=False)
        return
    shown.end()
    _tell(console, answer.summary())


class _Shown:
    """An answer on the screen: reasoning dim, and on lines of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._style = ""

    def piece(self, piece: Piece) -> None:
        for text, style in ((piece.reasoning, "dim"), (piece.content, "")):
            if text:
                if self._style != style:
                    self._console.print(end="\n" if self._last and self._last != "\n" else "")
                    self._style = style
                self._print(text)

    def end(self) -> None:
        """The cursor goes to a line of its own."""
        if self._last and self._last != "\n":
            self._console.print()

    def _print(self, text: str) -> None:
        # A model's text must not move the cursor or talk to the terminal.
        text = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
        self._console.print(
            text, style=self._style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True
        )
        self._last = text[-1]


def _typed(read_line: ReadLine, console: Console) -> Iterator[str]:
    """The messages and commands, each of one line or more."""
    while True:
        try:
            lines = [read_line(PROMPT)]
            if lines[0].lstrip().startswith(BLOCK):
                lines[0] = lines[0].lstrip().removeprefix(BLOCK)
                while not lines[-1].rstrip().endswith(BLOCK):
                    lines.append(read_line(MORE))
                lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
            else:
                while lines[-1].endswith("\\"):
                    lines[-1] = lines[-1].removesuffix("\\")
                    lines.append(read_line(MORE))
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if text := "\n".join(lines).strip():
            yield text


def _tell(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _write(stream: TextIO, text: str) -> None:
    if text:
        stream.write(text)
        stream.flush()
