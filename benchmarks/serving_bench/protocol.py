"""The protocol: every engine in turn, alone, several rounds; a turn beside foreign work is redone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from serving_bench.engine import (
    Dtype,
    Engine,
    EngineSettings,
    Transport,
    mean_step_ms,
)
from serving_bench.processes import end_leftovers
from serving_bench.processors import CpuUsage, CpuWatch, usage_between
from serving_bench.timing import WaveTiming
from serving_bench.workload import Case, draw_prompts

FOREIGN_CORES_LIMIT = 0.1
WARM_UP_OUTPUT_TOKENS = 8
LEFTOVER_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine's waves of one case over one transport, in one round."""

    engine: str
    transport: Transport
    dtype: Dtype
    case: Case
    round: int
    waves: tuple[WaveTiming, ...]
    cpu: CpuUsage
    step_ms: dict[str, float] | None
    """Mean milliseconds of a decode step by part, where the engine tells."""

    @property
    def accepted(self) -> bool:
        """Whether the machine was quiet enough for the figures to count."""
        return self.cpu.foreign_cores <= FOREIGN_CORES_LIMIT


@dataclass(frozen=True, slots=True)
class ProtocolSettings:
    """How often and how long."""

    rounds: int
    retries: int
    """Repetitions of a turn that ran beside foreign work."""
    vocab_size: int


@dataclass(slots=True)
class Protocol:
    """Runs engines through the cases and keeps the turns."""

    engines: Sequence[Engine]
    cases: Sequence[Case]
    settings: ProtocolSettings
    watch: CpuWatch
    report: Callable[[str], None]
    """Takes a line of progress."""

    def run(
        self, base: EngineSettings, dtypes: Sequence[Dtype]
    ) -> tuple[list[Turn], dict[str, dict[str, str]]]:
        """All turns, rejected ones too, and what each engine noted about itself."""
        turns: list[Turn] = []
        notes: dict[str, dict[str, str]] = {}
        for dtype in dtypes:
            for round_number in range(self.settings.rounds):
                for engine in self.engines:
                    self.report(f"{dtype}, round {round_number + 1}: {engine.name}")
                    turns += self._engine_turn(engine, replace(base, dtype=dtype), round_number, notes)
        return turns, notes

    def _engine_turn(
        self, engine: Engine, settings: EngineSettings, round_number: int, notes: dict[str, dict[str, str]]
    ) -> list[Turn]:
        turns: list[Turn] = []
        try:
            start_s = time.perf_counter()
            notes[engine.name] = engine.start(settings)
            started_s = time.perf_counter() - start_s
            for case in self.cases:
                key = f"warm-up/{case.prompt_tokens}/{case.concurrency}"
                engine.warm_up(self._prompts(case, key), WARM_UP_OUTPUT_TOKENS)
            self.report(f"  up in {started_s:.1f} s, warm")
            for case in self.cases:
                for transport in engine.transports:
                    turns += self._attempts(engine, settings.dtype, case, transport, round_number)
        finally:
            stop_engine(engine, self.watch, self.report)
        return turns

    def _attempts(
        self, engine: Engine, dtype: Dtype, case: Case, transport: Transport, round_number: int
    ) -> list[Turn]:
        turns: list[Turn] = []
        for _ in range(1 + self.settings.retries):
            turn = self._measure(engine, dtype, case, transport, round_number)
            turns.append(turn)
            self.report("  " + describe_turn(turn))
            if turn.accepted:
                break
        return turns

    def _measure(
        self, engine: Engine, dtype: Dtype, case: Case, transport: Transport, round_number: int
    ) -> Turn:
        all_prompts = [
            self._prompts(case, f"{round_number}/{case.prompt_tokens}/{case.concurrency}/{wave}")
            for wave in range(case.n_waves)
        ]
        parts_before = engine.step_totals()
        cpu_before = self.watch.snapshot()
        waves = tuple(engine.run(prompts, case.output_tokens, transport) for prompts in all_prompts)
        cpu_after = self.watch.snapshot()
        return Turn(
            engine=engine.name,
            transport=transport,
            dtype=dtype,
            case=case,
            round=round_number,
            waves=waves,
            cpu=usage_between(cpu_before, cpu_after),
            step_ms=mean_step_ms(parts_before, engine.step_totals()),
        )

    def _prompts(self, case: Case, key: str) -> list[tuple[int, ...]]:
        return draw_prompts(case.concurrency, case.prompt_tokens, self.settings.vocab_size, key=key)


def stop_engine(engine: Engine, watch: CpuWatch, report: Callable[[str], None]) -> None:
    """Stops it, and kills what it left running: the next engine must have the machine to itself."""
    try:
        engine.stop()
    finally:
        if killed := end_leftovers(watch.own_pids, LEFTOVER_DEADLINE_S):
            report(f"  WARNING: {engine.name} left processes running, killed: {'; '.join(killed)}")


def describe_turn(turn: Turn) -> str:
    """A line of progress."""
    rates = [wave.output_tokens_per_s for wave in turn.waves]
    verdict = "" if turn.accepted else "  REJECTED: the machine was busy"
    return (
        f"{turn.transport:<6} {turn.case.prompt_tokens:>4} in x {turn.case.concurrency:<2} "
        f"{sum(rates) / len(rates):7.1f} tok/s   client {turn.cpu.client_cores:.2f} cores, "
        f"foreign {turn.cpu.foreign_cores:.2f}{verdict}"
    )
