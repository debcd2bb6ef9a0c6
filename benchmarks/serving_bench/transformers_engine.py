"""The baseline: transformers' `generate` on a padded batch, called as a library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_bench.engine import EngineError, EngineSettings, Prompt, StepTotals, Transport
from serving_bench.processes import read_tail
from serving_bench.timing import RequestTiming, WaveTiming

WORKER = Path(__file__).with_name("transformers_worker.py")
STOP_DEADLINE_S = 20.0


class TransformersEngine:
    """Runs `transformers_worker.py` and asks it for batches."""

    name = "transformers"
    transports: tuple[Transport, ...] = ("direct",)

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._log_file: Path | None = None

    def start(self, settings: EngineSettings) -> dict[str, str]:
        """Starts the worker and loads the checkpoint."""
        self._log_file = settings.log_folder / f"transformers-{settings.dtype}.log"
        with self._log_file.open("w") as log:
            self._process = subprocess.Popen(
                # -P: the worker's folder stays off its path, with the modules of this benchmark.
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**settings.environment, "OMP_NUM_THREADS": str(settings.threads)},
                text=True,
            )
        notes: dict[str, str] = self._ask(
            command="load",
            checkpoint=str(settings.checkpoint),
            dtype=settings.dtype,
            threads=settings.threads,
        )
        return notes

    def warm_up(self, prompts: Sequence[Prompt], n_out: int) -> None:
        """One batch."""
        self.run(prompts, n_out, "direct")

    def run(self, prompts: Sequence[Prompt], n_out: int, transport: Transport) -> WaveTiming:
        """One batch; every request shares the steps' times."""
        answer = self._ask(command="generate", prompts=[list(p) for p in prompts], n_out=n_out)
        times_s = tuple(answer["step_times_s"])
        if len(times_s) != n_out:
            raise EngineError(f"transformers made {len(times_s)} steps instead of {n_out}")
        return WaveTiming(
            tuple(RequestTiming(answer["start_s"], times_s, tuple(ids)) for ids in answer["token_ids"])
        )

    def step_totals(self) -> StepTotals | None:
        """It does not tell."""
        return None

    def stop(self) -> None:
        """Closes the worker's input, which ends it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _ask(self, **command: Any) -> Any:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise EngineError("the transformers worker is not running; start it first")
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"the transformers worker ended:\n{read_tail(self._log_file)}")
        return json.loads(line)
