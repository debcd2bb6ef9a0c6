"""`expertmesh serve` as its users run it: a process in a terminal, with signals from outside."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
MARKER = "EXPERTMESH_TEST_COMMAND"
START_S = 120.0
# Runs a command in a pseudo-terminal of its own; what comes in on stdin is typed there.
IN_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


class Command:
    """A running `expertmesh` command whose output is read line by line."""

    def __init__(self, arguments: list[str], terminal: bool, environment: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, "-c", "from expertmesh.cli.main import main; main()", *arguments]
        if terminal:
            command = [sys.executable, "-c", IN_TERMINAL, *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TERM": "xterm", **environment, MARKER: self.mark},
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """The first line, from here on, that matches."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(deadline_s - time.monotonic(), 0.001))
            except queue.Empty:
                pytest.fail(f"no line like {pattern!r} within {timeout_s:.0f} s in:\n{self.output}")
            if line is None:
                pytest.fail(f"the command ended without a line like {pattern!r}:\n{self.output}")
            self.output += line
            if match := re.search(pattern, line):
                return match

    def type(self, keys: bytes) -> None:
        """Types into the command's terminal."""
        assert self._process.stdin is not None
        self._process.stdin.write(keys)
        self._process.stdin.flush()

    def signal(self, signum: int) -> None:
        """Sends a signal to the command alone."""
        self._process.send_signal(signum)

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        code = self._process.wait(timeout_s)
        while (line := self._lines.get(timeout=5)) is not None:
            self.output += line
        return code

    def living(self) -> list[str]:
        """Command lines of all processes that it started, itself included, and that still run."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and f"{MARKER}={self.mark}".encode() in (folder / "environ").read_bytes()
                ):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def kill(self) -> None:
        """Ends it and all that it started, whatever state they are in."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and f"{MARKER}={self.mark}".encode() in (folder / "environ").read_bytes()
                ):
                    os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str, terminal: bool = False, **environment: str) -> Command:
        started.append(Command(list(arguments), terminal, {"RAY_ADDRESS": "", **environment}))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def serve(command: Callable[..., Command]) -> Callable[..., Command]:
    """Starts `expertmesh serve` with the demo deployment on free ports."""

    def start(*arguments: str, terminal: bool = False, **environment: str) -> Command:
        config = str(REPOSITORY / "configs" / "demo.yaml")
        ports = ("--http-port", "0", "--grpc-port", "0")
        return command("serve", config, *ports, *arguments, terminal=terminal, **environment)

    return start
