"""This project, started as a user does: `expertmesh serve` in a subprocess, ready when /health is 200."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from expertmesh.cli.ports import free_ports
from serving_bench.clients import GrpcClient, HttpClient, WaveClient, openai_dialect
from serving_bench.engine import EngineError, EngineSettings, Prompt, StepTotals, Transport
from serving_bench.processes import read_tail, wait_until
from serving_bench.timing import WaveTiming

CONFIG = Path(__file__).parents[1] / "serving.yaml"
TOPOLOGY_PATH = "/v1/topology"
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 60.0
HTTP_TIMEOUT_S = 5.0
REPORT_SETTLE_S = 1.5

T = TypeVar("T")


class ExpertmeshEngine:
    """Routers and expert hosts; 0 hosts is the fused mode."""

    transports: tuple[Transport, ...] = ("http", "grpc")

    def __init__(self, routers: int, experts: int, overrides: Sequence[str] = ()) -> None:
        self._routers, self._experts = routers, experts
        self._overrides = tuple(overrides)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: Path | None = None
        self._base_url = ""
        self._clients: dict[Transport, WaveClient] = {}
        self._loop: asyncio.Runner | None = None

    @classmethod
    def from_name(cls, name: str, overrides: Sequence[str] = ()) -> ExpertmeshEngine | None:
        """`fused`, or routers x hosts as in `1x2`; None for any other name.

        `overrides` are `dotted.key=value` settings for the deployment.
        """
        if name == "fused":
            return cls(1, 0, overrides)
        match = re.fullmatch(r"([1-9]\d*)x(\d+)", name)
        return cls(int(match[1]), int(match[2]), overrides) if match else None

    @property
    def name(self) -> str:
        """`fused` or `1x2`."""
        fused = (self._routers, self._experts) == (1, 0)
        return "fused" if fused else f"{self._routers}x{self._experts}"

    def start(self, settings: EngineSettings) -> dict[str, str]:
        """Starts the deployment on free ports and connects the clients."""
        http_port, grpc_port = free_ports(2)
        self._base_url = f"http://127.0.0.1:{http_port}"
        self._log_file = settings.log_folder / f"{self.name}-{settings.dtype}.log"
        command = [
            *(str(Path(sys.executable).with_name("expertmesh")), "serve", str(CONFIG)),
            *("--model", str(settings.checkpoint), "--dtype", settings.dtype, "--device", "cpu"),
            *("--routers", str(self._routers), "--experts", str(self._experts)),
            *("--http-port", str(http_port), "--grpc-port", str(grpc_port)),
            *(word for setting in self._settings(settings.threads) for word in ("--set", setting)),
        ]
        with self._log_file.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(settings.environment),
                start_new_session=True,
            )
        if not wait_until(self._healthy, START_DEADLINE_S):
            raise EngineError(f"{self.name} was not ready within {START_DEADLINE_S:.0f} s:\n{self._tail()}")
        models = json.loads(self._get("/v1/models"))
        self._loop = asyncio.Runner()
        self._await(self._connect(models["data"][0]["id"], f"127.0.0.1:{grpc_port}"))
        return {"settings": " ".join(self._settings(settings.threads))}

    def warm_up(self, prompts: Sequence[Prompt], n_out: int) -> None:
        """A wave over each transport."""
        for transport in self.transports:
            self.run(prompts, n_out, transport)

    def run(self, prompts: Sequence[Prompt], n_out: int, transport: Transport) -> WaveTiming:
        """A wave over one transport."""
        return self._await(self._clients[transport].run(prompts, n_out))

    def step_totals(self) -> StepTotals | None:
        """What the routers have told the gateway, or None when it tells nothing."""
        try:
            if parse_step_totals(json.loads(self._get(TOPOLOGY_PATH))) is None:
                return None
            # Routers report once a second: the wave's last steps are on their way.
            time.sleep(REPORT_SETTLE_S)
            return parse_step_totals(json.loads(self._get(TOPOLOGY_PATH)))
        except (OSError, ValueError):
            return None

    def stop(self) -> None:
        """Sends SIGTERM, as a user's Ctrl-C; kills it when it does not end in time, and says so."""
        if self._loop is not None:
            self._await(self._disconnect())
            self._loop.close()
            self._loop = None
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise EngineError(
                f"{self.name} did not end within {STOP_DEADLINE_S:.0f} s of SIGTERM:\n{self._tail()}"
            ) from None

    def _settings(self, threads: int) -> list[str]:
        # Sharded, the deployment shares the cores between its processes as it does for a user.
        own = [f"router.threads={threads}"] if self._experts == 0 else []
        return [*own, *self._overrides]

    async def _connect(self, model: str, grpc_address: str) -> None:
        self._clients = {
            "http": HttpClient(self._base_url, openai_dialect(model)),
            "grpc": GrpcClient(grpc_address),
        }

    async def _disconnect(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _await(self, call: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            raise EngineError(f"{self.name} is not running; start it first")
        return self._loop.run(call)

    def _healthy(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise EngineError(f"{self.name} ended while starting:\n{self._tail()}")
        try:
            self._get("/health")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._base_url + path, timeout=HTTP_TIMEOUT_S) as response:
            body: bytes = response.read()
            return body

    def _tail(self) -> str:
        return read_tail(self._log_file)


def parse_step_totals(body: object) -> StepTotals | None:
    """Adds up the routers' decode profiles of `/v1/topology`; None when it is anything else.

    What the expert hosts compute, on average, while the routers wait in `combine`, is the part
    "experts on hosts".
    """
    try:
        routers, hosts = body["routers"], body["experts"]  # type: ignore[index]
        profiles = [router["decode_profile"] for router in routers]
        steps = sum(int(profile["steps"]) for profile in profiles)
        parts: dict[str, float] = {}
        for profile in profiles:
            for part, part_ms in profile["part_ms"].items():
                parts[part] = parts.get(part, 0.0) + float(part_ms)
        if hosts:
            experts_ms = [float(h["decode_profile"]["part_ms"].get("experts", 0.0)) for h in hosts]
            parts["experts on hosts"] = sum(experts_ms) / len(hosts)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return StepTotals(steps, parts) if profiles else None
