"""The first gate: in fp32, every engine answers transformers' greedy tokens, or it is not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving_bench.engine import Engine, EngineError, EngineSettings, Prompt

TokenRows = Sequence[Sequence[int]]


class GateError(RuntimeError):
    """An engine's tokens differ from the reference's. Says where."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One engine and transport that passed."""

    engine: str
    transport: str
    n_requests: int
    n_tokens: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def first_difference(tokens: TokenRows, reference: TokenRows) -> tuple[int, int] | None:
    """(row, position) of the first token that differs, or None; a shorter row differs at its end."""
    if len(tokens) != len(reference):
        raise ValueError(f"{len(tokens)} rows against {len(reference)}")
    for row, (ours, theirs) in enumerate(zip(tokens, reference, strict=True)):
        if list(ours) != list(theirs):
            pairs = enumerate(zip(ours, theirs, strict=False))
            return row, next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    return None


def gate_tokens(
    engine: Engine,
    settings: EngineSettings,
    prompts: Sequence[Prompt],
    n_out: int,
    stop: Callable[[Engine], None],
) -> dict[str, list[list[int]]]:
    """The engine's greedy tokens for each transport; it is started here and ended by `stop`.

    The prompts go in one wave and, the first of them, alone: batch and single decode both count.
    """
    try:
        engine.start(settings)
        answers: dict[str, list[list[int]]] = {}
        for transport in engine.transports:
            waves = (engine.run(prompts, n_out, transport), engine.run(prompts[:1], n_out, transport))
            answers[transport] = [list(r.token_ids) for wave in waves for r in wave.requests]
        return answers
    finally:
        stop(engine)


def check_gate(engine: str, answers: dict[str, list[list[int]]], reference: TokenRows) -> list[GateResult]:
    """Compares every transport's tokens. Raises GateError at the first that differs."""
    results = []
    for transport, tokens in answers.items():
        difference = first_difference(tokens, reference)
        if difference is not None:
            row, position = difference
            raise GateError(
                f"{engine} over {transport} differs from transformers in fp32: "
                f"request {row}, output token {position}: {tokens[row][position : position + 4]} "
                f"against {list(reference[row][position : position + 4])}"
            )
        n_tokens = sum(len(row) for row in tokens)
        results.append(GateResult(engine, transport, len(tokens), n_tokens))
    return results


def run_gate(
    engines: Sequence[Engine],
    baseline: Engine,
    settings: EngineSettings,
    prompts: Sequence[Prompt],
    n_out: int,
    stop: Callable[[Engine], None],
) -> list[GateResult]:
    """Runs the baseline, then every engine but it, one after the other, in fp32."""
    if settings.dtype != "fp32":
        raise EngineError(f"the gate compares in fp32, not {settings.dtype}")
    (reference,) = gate_tokens(baseline, settings, prompts, n_out, stop).values()
    results = []
    for engine in engines:
        if engine.name != baseline.name:
            answers = gate_tokens(engine, settings, prompts, n_out, stop)
            results += check_gate(engine.name, answers, reference)
    return results
