"""TCP sockets that processes listen on."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple


class Listening(NamedTuple):
    """One process's end of a socket."""

    pid: int
    address: str
    """`*`, `0.0.0.0` or `::` for every interface."""
    port: int


EVERYWHERE = ("*", "0.0.0.0", "::")


def listening() -> list[Listening]:
    """Every TCP socket that is listened on, once for each process that has it."""
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for line in lines:
        address, _, port = line.split()[3].rpartition(":")
        address = address.strip("[]").removeprefix("::ffff:")
        found += [Listening(int(pid), address, int(port)) for pid in re.findall(r"pid=(\d+)", line)]
    return found
