"""Cases, turns, the gate and the way from turns to rows, with an engine of a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from serving_bench.engine import Engine, EngineSettings, Prompt, StepTotals, Transport
from serving_bench.gate import GateError, check_gate, first_difference, run_gate
from serving_bench.processors import CpuSnapshot, CpuWatch
from serving_bench.protocol import Protocol, ProtocolSettings, Turn
from serving_bench.results import build_rows
from serving_bench.timing import RequestTiming, WaveTiming
from serving_bench.workload import Case, draw_prompts, protocol_cases

SETTINGS = EngineSettings(Path("none"), "fp32", 2, {}, Path("none"))


@dataclass
class FakeEngine:
    """Answers (first prompt token + position) at a fixed speed, and notes the calls."""

    name: str
    token_s: float
    transports: tuple[Transport, ...] = ("direct",)
    wrong_at: int | None = None
    calls: list[str] = field(default_factory=list)

    def start(self, settings: EngineSettings) -> dict[str, str]:
        self.calls.append(f"start {settings.dtype}")
        return {"made of": "tests"}

    def warm_up(self, prompts: Sequence[Prompt], n_out: int) -> None:
        self.calls.append(f"warm {len(prompts)}")

    def run(self, prompts: Sequence[Prompt], n_out: int, transport: Transport) -> WaveTiming:
        self.calls.append(f"run {transport} {len(prompts)}")
        times_s = tuple(self.token_s * (i + 1) for i in range(n_out))
        rows = [[prompt[0] + i + (i == self.wrong_at) for i in range(n_out)] for prompt in prompts]
        return WaveTiming(tuple(RequestTiming(0.0, times_s, tuple(row)) for row in rows))

    def step_totals(self) -> StepTotals | None:
        return None

    def stop(self) -> None:
        self.calls.append("stop")


class FakeWatch(CpuWatch):
    """Foreign use as told, one figure a window."""

    def __init__(self, foreign_cores: Sequence[float]) -> None:
        super().__init__("none", [])
        self._snapshots = self._tell(foreign_cores)

    @staticmethod
    def _tell(foreign_cores: Sequence[float]) -> Iterator[CpuSnapshot]:
        for foreign in foreign_cores:
            for busy_s in (0.0, foreign):
                yield CpuSnapshot(
                    wall_s=0.0 if busy_s == 0 else 1.0, busy_s=busy_s, steal_s=0, own_s=0, client_s=0
                )

    def snapshot(self) -> CpuSnapshot:
        return next(self._snapshots)

    def own_pids(self) -> list[int]:
        return []


def run_protocol(
    engines: Sequence[Engine], foreign_cores: Sequence[float], *, rounds: int = 1
) -> list[Turn]:
    settings = ProtocolSettings(rounds=rounds, retries=1, vocab_size=100)
    cases = [Case(prompt_tokens=4, output_tokens=5, concurrency=8)]
    turns, _ = Protocol(engines, cases, settings, FakeWatch(foreign_cores), lambda line: None).run(
        SETTINGS, ["bf16"]
    )
    return turns


def test_default_cases_are_the_protocols() -> None:
    cases = protocol_cases((1, 8, 32), (), 64)
    assert [(c.prompt_tokens, c.concurrency) for c in cases] == [(32, 1), (32, 8), (32, 32), (1024, 8)]
    assert [c.n_waves for c in cases] == [4, 1, 1, 1]
    assert [c.prompt_tokens for c in protocol_cases((1, 32), (1024,), 64)] == [1024, 1024]


def test_prompts_depend_on_the_key_alone() -> None:
    assert draw_prompts(2, 8, 100, key="a") == draw_prompts(2, 8, 100, key="a")
    assert draw_prompts(2, 8, 100, key="a") != draw_prompts(2, 8, 100, key="b")
    assert all(3 <= token < 100 for prompt in draw_prompts(4, 64, 100, key="c") for token in prompt)


def test_engines_take_turns_and_each_is_alone() -> None:
    log: list[str] = []
    engines = [FakeEngine("transformers", 0.1, calls=log), FakeEngine("fused", 0.05, calls=log)]
    turns = run_protocol(engines, [0.01] * 4, rounds=2)
    assert [(t.round, t.engine) for t in turns] == [
        (0, "transformers"),
        (0, "fused"),
        (1, "transformers"),
        (1, "fused"),
    ]
    assert log == ["start bf16", "warm 8", "run direct 8", "stop"] * 4


def test_a_turn_beside_foreign_work_is_redone_and_left_out() -> None:
    turns = run_protocol([FakeEngine("transformers", 0.1)], [0.5, 0.02])
    assert [t.accepted for t in turns] == [False, True]
    (row,) = build_rows(turns)
    assert (row.quiet, row.n_rejected_turns, row.figures.n_waves) == (True, 1, 1)
    assert row.foreign_cores_max == pytest.approx(0.02)


def test_figures_of_a_busy_machine_are_marked() -> None:
    (row,) = build_rows(run_protocol([FakeEngine("transformers", 0.1)], [0.5, 0.6]))
    assert not row.quiet
    assert row.n_rejected_turns == 2


def test_ratios_are_to_transformers() -> None:
    rows = build_rows(
        run_protocol([FakeEngine("transformers", 0.1), FakeEngine("fused", 0.04)], [0.01, 0.01])
    )
    assert [row.output_ratio for row in rows] == pytest.approx([1.0, 2.5])
    assert [row.decode_ratio for row in rows] == pytest.approx([1.0, 2.5])
    (alone,) = build_rows(run_protocol([FakeEngine("fused", 0.04)], [0.01]))
    assert alone.output_ratio is None


def test_an_engine_is_stopped_when_it_fails() -> None:
    engine = FakeEngine("fused", 0.1)
    with pytest.raises(StopIteration):
        run_protocol([engine], [])
    assert engine.calls[-1] == "stop"


def test_first_difference_names_row_and_position() -> None:
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 4]]) is None
    assert first_difference([[1, 2], [3, 5]], [[1, 2], [3, 4]]) == (1, 1)
    assert first_difference([[1, 2]], [[1, 2, 3]]) == (0, 2)
    with pytest.raises(ValueError, match="1 rows against 2"):
        first_difference([[1]], [[1], [2]])


def test_the_gate_compares_a_batch_and_a_single_request() -> None:
    stopped: list[str] = []
    engines = [FakeEngine("transformers", 0.1), FakeEngine("fused", 0.1, ("http", "grpc"))]
    results = run_gate(engines, FakeEngine("transformers", 0.1), SETTINGS, [(5, 6), (7, 8)], 4,
                       lambda engine: stopped.append(engine.name))  # fmt: skip
    assert [(r.engine, r.transport, r.n_requests, r.n_tokens) for r in results] == [
        ("fused", "http", 3, 12),
        ("fused", "grpc", 3, 12),
    ]
    assert stopped == ["transformers", "fused"]


def test_the_gate_says_where_tokens_differ() -> None:
    wrong = FakeEngine("1x2", 0.1, ("grpc",), wrong_at=2)
    with pytest.raises(GateError, match=r"1x2 over grpc .* request 0, output token 2"):
        run_gate(
            [wrong], FakeEngine("transformers", 0.1), SETTINGS, [(5, 6)], 4, lambda engine: engine.stop()
        )
    with pytest.raises(GateError, match="request 1, output token 0"):
        check_gate("x", {"http": [[1], [2]]}, [[1], [3]])
