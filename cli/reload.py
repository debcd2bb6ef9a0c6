"""`expertmesh reload`: other weights for a running deployment, and see them served."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from expertmesh.cli import display
from expertmesh.cli.endpoint import Endpoint
from expertmesh.cli.errors import CliError
from expertmesh.cli.progress import Progress
from expertmesh.cli.scale import CALL_S, POLL_S, topology_or_none
from expertmesh.proto.v1 import inference_pb2 as pb


def run(
    address: str,
    app: str | None,
    path: Path,
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
    console: Console,
    key: str = "",
) -> None:
    """The command, once its options are parsed.

    Raises:
        CliError: refused, rolled back, or not done within `timeout_s`; the message says why.
    """
    started_s = time.monotonic()
    with Endpoint(address, app, key) as endpoint:
        accepted = endpoint.reload(str(path), min(timeout_s, CALL_S))
        if wait:
            with Progress(Console(stderr=True) if as_json else console) as progress:
                _wait(endpoint, accepted, timeout_s, progress.show)
    seconds = time.monotonic() - started_s
    if as_json:
        report = {"version": accepted.version, "path": str(path), "seconds": round(seconds, 3)}
        console.file.write(json.dumps(report) + "\n")
        return
    text = f"weights version {accepted.version} ({path})"
    if wait:
        text += f" served after {seconds:.1f} s, the old ones are gone"
    else:
        text += " accepted; `expertmesh status` shows how far it is"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _wait(
    endpoint: Endpoint, accepted: pb.ReloadResponse, timeout_s: float, show: Callable[[str], None]
) -> None:
    deadline_s = time.monotonic() + timeout_s
    text = "no topology was told"
    while True:
        topology = topology_or_none(endpoint, timeout_s)
        if topology is not None:
            versions = [weights.version for weights in topology.weights]
            if versions == [accepted.version]:
                return
            text = _progress(topology, accepted)
            show(text)
        if time.monotonic() >= deadline_s:
            raise CliError(f"not done within {timeout_s:g} s, and not given up: {text}")
        time.sleep(POLL_S)


def _progress(topology: pb.Topology, accepted: pb.ReloadResponse) -> str:
    """What the reload waits for.

    Raises:
        CliError: it was rolled back.
    """
    if any(weights.version == accepted.version for weights in topology.weights):
        return f"weights {display.weights_text(topology.weights)}"
    last = topology.last_change
    ours = last.kind == "reload" and last.generation > accepted.after_generation
    if ours and last.outcome == "rolled back":
        raise CliError(f"the old weights are still served: {last.reason}")
    parts = [f"generation {topology.generation} {topology.state}"]
    if topology.HasField("change"):
        parts.append(display.change_text(topology.change))
    return ", ".join(parts)
