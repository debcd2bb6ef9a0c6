"""llama.cpp through its own HTTP server. Optional: `pip install xllamacpp gguf`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serving_bench.clients import HttpClient, HttpDialect
from serving_bench.engine import EngineError, EngineSettings, Prompt, StepTotals, Transport
from serving_bench.processes import read_tail
from serving_bench.sse import llama_tokens
from serving_bench.timing import WaveTiming

WORKER = Path(__file__).with_name("llama_worker.py")
SLOTS = 32
CONTEXT_TOKENS = 65536
"""Of all slots together: 32 requests of 1,024 + 64 tokens fit."""
STOP_DEADLINE_S = 20.0


def _body(prompt: Prompt, n_out: int) -> dict[str, Any]:
    return {
        "prompt": list(prompt),
        "n_predict": n_out,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "stream": True,
    }


class LlamaEngine:
    """Writes the checkpoint as GGUF once, then serves it with xllamacpp."""

    name = "llama.cpp"
    transports: tuple[Transport, ...] = ("http",)

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._loop: asyncio.Runner | None = None
        self._client: HttpClient | None = None

    def start(self, settings: EngineSettings) -> dict[str, str]:
        """Starts the server and connects."""
        try:
            package = version("xllamacpp")
            from serving_bench.gguf_export import export_gguf
        except (PackageNotFoundError, ImportError) as error:
            raise EngineError(f"llama.cpp needs `pip install xllamacpp gguf`: {error}") from error
        model = settings.checkpoint.with_name(f"{settings.checkpoint.name}-{settings.dtype}.gguf")
        export_gguf(settings.checkpoint, model, settings.dtype)
        log_file = settings.log_folder / f"llama-{settings.dtype}.log"
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", str(WORKER), str(model)),
                    *(str(settings.threads), str(SLOTS), str(CONTEXT_TOKENS)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(settings.environment),
                text=True,
            )
        assert self._process.stdout is not None
        address, _, system = self._process.stdout.readline().strip().partition(" ")
        if not address:
            raise EngineError(f"llama.cpp's server did not start:\n{read_tail(log_file)}")
        self._loop = asyncio.Runner()
        self._loop.run(self._connect(address))
        return {"xllamacpp": package, "system": system}

    def warm_up(self, prompts: Sequence[Prompt], n_out: int) -> None:
        """One wave."""
        self.run(prompts, n_out, "http")

    def run(self, prompts: Sequence[Prompt], n_out: int, transport: Transport) -> WaveTiming:
        """One wave; more requests than slots queue in the server."""
        if self._loop is None or self._client is None:
            raise EngineError("llama.cpp is not running; start it first")
        return self._loop.run(self._client.run(prompts, n_out))

    def step_totals(self) -> StepTotals | None:
        """It does not tell."""
        return None

    def stop(self) -> None:
        """Closes the worker's input, which ends it."""
        if self._loop is not None and self._client is not None:
            self._loop.run(self._client.close())
            self._loop.close()
        self._loop = self._client = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    async def _connect(self, address: str) -> None:
        # Its server closes a connection behind a stream without saying so.
        dialect = HttpDialect("/completion", _body, llama_tokens, keep_alive=False)
        self._client = HttpClient(address, dialect)
