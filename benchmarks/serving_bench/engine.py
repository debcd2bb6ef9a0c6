"""The seam between the benchmark and what it measures: an engine is an adapter of a few methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from serving_bench.timing import WaveTiming

Dtype = Literal["fp32", "bf16"]
Transport = Literal["direct", "http", "grpc"]
"""`direct`: the engine is called as a library, in a process of its own, without a server."""

Prompt = tuple[int, ...]

STEP_PARTS = ("attention", "gate", "dispatch", "experts", "combine", "head", "sample", "wait")
"""A decode step's parts, in the order of the step."""


class EngineError(RuntimeError):
    """An engine did not start, stopped, or answered wrongly. Says which and shows its last output."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What every engine is started with."""

    checkpoint: Path
    dtype: Dtype
    threads: int
    environment: Mapping[str, str]
    """Of every process that the engine starts."""
    log_folder: Path


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Totals since the engine's start over its pure decode steps (those without a prefill chunk)."""

    steps: int
    parts_ms: Mapping[str, float]


class Engine(Protocol):
    """One thing to measure. Calls come in the order start, warm_up, run..., stop."""

    @property
    def name(self) -> str:
        """As in `--engines`."""
        ...

    @property
    def transports(self) -> tuple[Transport, ...]:
        """The ways in which it can be called."""
        ...

    def start(self, settings: EngineSettings) -> dict[str, str]:
        """Starts it and waits until it serves; gives what is worth noting (versions, chosen kernels).

        Raises:
            EngineError: it did not come up.
        """
        ...

    def warm_up(self, prompts: Sequence[Prompt], n_out: int) -> None:
        """Runs once through every transport, so that nothing is measured for the first time."""
        ...

    def run(self, prompts: Sequence[Prompt], n_out: int, transport: Transport) -> WaveTiming:
        """Sends all prompts at once, greedy and past end-of-sequence, for exactly `n_out` tokens each.

        The answers stand in the prompts' order. Raises EngineError when an answer is not as asked.
        """
        ...

    def step_totals(self) -> StepTotals | None:
        """Totals of the decode step's parts, or None where the engine does not tell."""
        ...

    def stop(self) -> None:
        """Ends it and everything that it started; harmless when it is not running."""
        ...


def mean_step_ms(before: StepTotals | None, after: StepTotals | None) -> dict[str, float] | None:
    """Mean milliseconds a decode step by part between two readings; None without steps in between."""
    if before is None or after is None or after.steps <= before.steps:
        return None
    n_steps = after.steps - before.steps
    return {part: (ms - before.parts_ms.get(part, 0.0)) / n_steps for part, ms in after.parts_ms.items()}
