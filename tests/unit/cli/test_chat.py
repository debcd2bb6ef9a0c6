"""`expertmesh chat` against a small HTTP server that answers as a deployment does."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from expertmesh.cli.chat import Conversation, run_interactive, run_once
from expertmesh.cli.chat_client import ChatClient
from expertmesh.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError, UsageError

WAIT_S = 30.0
TOKEN_S = 0.002
ENDLESS = "count"
"""This message's answer goes on until the client goes away."""


class FakeDeployment(ThreadingHTTPServer):
    """Echoes the last message, word by word; some messages are answered otherwise."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.cancelled = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/app"


class _Handler(BaseHTTPRequestHandler):
    server: FakeDeployment
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        assert self.path == "/app/v1/models"
        self._whole(200, {"object": "list", "data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        assert self.path == "/app/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        text = body["messages"][-1]["content"]
        if text == "refuse":
            self._whole(400, {"error": {"message": "messages: are refused"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._stream(text)
        except OSError:
            self.server.cancelled.set()
        self.close_connection = True

    def _stream(self, text: str) -> None:
        if text == ENDLESS:
            # As fast as a model is, not as fast as a socket: nobody could read that.
            while not self.server.cancelled.wait(TOKEN_S):
                self._delta({"content": "1 "})
        if text == "break":
            self._delta({"content": "half"})
            self._event({"error": {"message": "the router is gone"}})
            return
        if text == "think":
            self._delta({"reasoning_content": "hm"})
        words = text.split(" ")
        for word in words:
            self._delta({"content": word + ("" if word is words[-1] else " ")})
        self._event({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]})
        if text == "cut":
            return
        self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words)}})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _delta(self, delta: dict[str, str]) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _event(self, chunk: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with FakeDeployment() as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def chat(deployment: FakeDeployment) -> Callable[..., str]:
    """`chat(line, ...)` types the lines and gives what stands on the screen."""

    def type_lines(
        *lines: str | type[BaseException], client: ChatClient | None = None, system: str = ""
    ) -> str:
        typed = iter([*lines, EOFError])
        screen = io.StringIO()

        def read_line(prompt: str) -> str:
            screen.write(prompt)
            line = next(typed)
            if isinstance(line, str):
                screen.write(line + "\n")
                return line
            raise line

        console = Console(file=screen, width=200, force_terminal=False)
        run_interactive(Conversation(client or ChatClient(deployment.url), system), console, read_line)
        return screen.getvalue()

    return type_lines


def roles(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_a_conversation_goes_on_until_it_is_reset(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    screen = chat("hello there", "and now", "/reset", "anew", "/exit", "never sent", system="Be brief.")
    assert [roles(request) for request in deployment.requests] == [
        [("system", "Be brief."), ("user", "hello there")],
        [
            ("system", "Be brief."),
            ("user", "hello there"),
            ("assistant", "hello there"),
            ("user", "and now"),
        ],
        [("system", "Be brief."), ("user", "anew")],
    ]
    assert screen.startswith(f"tiny at {deployment.url}; ")
    assert ">>> hello there\nhello there\n2 tokens in " in screen
    assert " tokens/s (prompt: 7 tokens)\n" in screen
    assert all(request["stream"] for request in deployment.requests)


def test_the_system_message_is_set_and_taken_away(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    chat("a", "/system  Be kind. ", "b", "/system", "c")
    assert [roles(request) for request in deployment.requests] == [
        [("user", "a")],
        [("system", "Be kind."), ("user", "b")],
        [("user", "c")],
    ]


def test_messages_of_several_lines(chat: Callable[..., str], deployment: FakeDeployment) -> None:
    chat("one \\", "two", '"""three', "  four\\", '  five"""', "", "   ", '"""six"""')
    sent = [roles(request)[-1][1] for request in deployment.requests]
    assert sent == ["one \ntwo", "three\n  four\\\n  five", "six"]


def test_parameters_and_key_go_with_every_request(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    client = ChatClient(deployment.url + "/", "secret", params={"temperature": 0.0, "seed": 3})
    chat("a", "b", client=client)
    assert deployment.keys == ["Bearer secret"] * 2
    assert [(r["temperature"], r["seed"]) for r in deployment.requests] == [(0.0, 3)] * 2
    assert "max_tokens" not in deployment.requests[0]


def test_what_fails_is_told_and_is_no_part_of_the_conversation(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    screen = chat("refuse", "break", "cut", "/nonsense", "fine")
    assert "400: messages: are refused\n" in screen
    assert "half\n" in screen
    assert "the router is gone\n" in screen
    assert "there is no command /nonsense" in screen
    assert roles(deployment.requests[-1]) == [("user", "fine")]


def test_reasoning_is_shown_apart_and_not_sent_again(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    assert ">>> think\nhm\nthink\n1 tokens" in chat("think", "next")
    assert roles(deployment.requests[1])[1] == ("assistant", "think")


def test_text_cannot_talk_to_the_terminal(chat: Callable[..., str]) -> None:
    screen = chat("a\x1b]0;title\x07b [bold]c[/bold] :smile:")
    assert (
        "\na\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}b [bold]c[/bold] :smile:\n" in screen
    )


def test_ctrl_c_at_the_prompt_begins_a_new_line(
    chat: Callable[..., str], deployment: FakeDeployment
) -> None:
    chat("half \\", KeyboardInterrupt, "whole")
    assert [roles(request) for request in deployment.requests] == [[("user", "whole")]]


def once(url: str, text: str, as_json: bool = False) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    run_once(Conversation(ChatClient(url)), text, as_json, out, err)
    return out.getvalue(), err.getvalue()


def test_one_answer_for_a_pipe(deployment: FakeDeployment) -> None:
    out, err = once(deployment.url, "hello there")
    assert out == "hello there\n"
    assert err.startswith("2 tokens in ")
    out, err = once(deployment.url, "think", as_json=True)
    answer = json.loads(out)
    assert (answer["content"], answer["reasoning"], answer["finish_reason"]) == ("think", "hm", "stop")
    assert (answer["prompt_tokens"], answer["completion_tokens"], err) == (7, 1, "")


@pytest.mark.parametrize(
    ("text", "message", "exit_code"),
    [
        (" \n", "the message is empty", EXIT_USAGE),
        ("refuse", "400: messages: are refused", EXIT_USAGE),
        ("break", "the router is gone", EXIT_FAILED),
        ("cut", "ended before the answer did", EXIT_FAILED),
    ],
)
def test_one_answer_that_does_not_come(
    deployment: FakeDeployment, text: str, message: str, exit_code: int
) -> None:
    with pytest.raises(CliError, match=message) as caught:
        once(deployment.url, text)
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:port"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        ChatClient(url)


def test_nobody_answers() -> None:
    with pytest.raises(CliError, match=r"http://127.0.0.1:9: .*refused"):
        once("http://127.0.0.1:9", "hello")


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._fd, inner = pty.openpty()
        code = "from expertmesh.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
            # The terminal is the session's: its Ctrl-C reaches the command.
            preexec_fn=_take_terminal,
        )
        os.close(inner)
        self.screen = ""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def until(self, text: str) -> None:
        """Reads until the text stands on the screen, behind all that was waited for before."""
        watchdog = threading.Timer(WAIT_S, self.process.kill)
        watchdog.start()
        try:
            while text not in self.screen:
                self.screen = self.screen[-len(text) :] + os.read(self._fd, 4096).decode(errors="replace")
        except OSError:
            pytest.fail(f"no {text!r} in {self.screen[-2000:]!r}")
        finally:
            watchdog.cancel()
        self.screen = self.screen.partition(text)[2]


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A shell's background job, which the tests may be, ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_the_chat(deployment: FakeDeployment) -> None:
    terminal = Terminal(["chat", "--url", deployment.url])
    try:
        terminal.until("Ctrl-D ends")
        terminal.until(">>> ")
        terminal.type(f"{ENDLESS}\n".encode())
        terminal.until("1 1 1")
        terminal.type(b"\x03")
        terminal.until("stopped after")
        assert deployment.cancelled.wait(WAIT_S), "the connection is closed"
        terminal.until(">>> ")
        terminal.type(b"still there\n")
        terminal.until("2 tokens in")
        earlier = roles(deployment.requests[-1])
        assert earlier[0] == ("user", ENDLESS)
        assert earlier[1][1].startswith("1 1 1")
        terminal.until(">>> ")
        terminal.type(b"\x04")
        assert terminal.process.wait(WAIT_S) == 0
    finally:
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
