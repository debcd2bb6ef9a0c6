"""The committed result, the tables made of it, the machine's description and the bench checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_bench_checkpoint import CONFIG, is_complete, make_checkpoint, tensor_plans
from rich.console import Console
from serving_bench.gate import GateResult
from serving_bench.machine import Machine, describe_machine, parse_cpuinfo
from serving_bench.processors import CpuUsage
from serving_bench.protocol import Turn
from serving_bench.results import as_json, build_rows, read_rows, write_json
from serving_bench.tables import BEGIN_MARK, END_MARK, markdown, render_into, terminal_tables
from serving_bench.timing import RequestTiming, WaveTiming
from serving_bench.workload import Case

REPOSITORY = Path(__file__).resolve().parents[3]
RESULT = REPOSITORY / "benchmarks" / "results" / "serving.json"
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"


def turn(
    engine: str, token_s: float, step_ms: dict[str, float] | None = None, foreign: float = 0.0
) -> Turn:
    times_s = tuple(token_s * (i + 1) for i in range(4))
    return Turn(
        engine=engine,
        transport="direct" if engine == "transformers" else "grpc",
        dtype="bf16",
        case=Case(32, 4, 1),
        round=0,
        waves=(WaveTiming((RequestTiming(0.0, times_s, (1, 2, 3, 4)),)),),
        cpu=CpuUsage(window_s=1.0, own_cores=2.0, client_cores=0.05, foreign_cores=foreign),
        step_ms=step_ms,
    )


def result_of(turns: list[Turn]) -> dict[str, Any]:
    return as_json(
        machine=Machine("A CPU", ("avx2",), (0, 1), 2, "32M", 23.4, "6.1", "3.11", {"torch": "2"}, "abc"),
        threads=2,
        gate=[GateResult("fused", "grpc", 9, 576)],
        notes={"transformers": {"experts": "grouped_mm"}},
        rows=build_rows(turns),
        turns=turns,
        started_at="2026-01-01T00:00:00+00:00",
    )


def test_the_result_survives_json_and_keeps_its_rows(tmp_path: Path) -> None:
    turns = [turn("transformers", 0.1), turn("fused", 0.05, {"experts": 3.0, "attention": 1.0})]
    write_json(tmp_path / "r.json", result_of(turns))
    result = json.loads((tmp_path / "r.json").read_text())
    rows = read_rows(result)
    assert [(row.engine, row.output_ratio) for row in rows] == [("transformers", 1.0), ("fused", 2.0)]
    assert rows[1].case == Case(32, 4, 1)
    assert result["turns"][1]["step_ms"] == {"experts": 3.0, "attention": 1.0}
    with pytest.raises(ValueError, match="format 0"):
        read_rows({**result, "format": 0})


def test_markdown_shows_ratios_parts_in_order_and_busy_machines() -> None:
    busy = turn("1x2", 0.2, foreign=0.4)
    text = markdown(
        result_of([turn("transformers", 0.1), turn("fused", 0.05, {"experts": 3, "attention": 1}), busy])
    )
    assert "| fused | grpc | 20.0 | 20.0 | 2.00 (2.00) | 50 / 50 | 50.0 / 50.0 | 0.05 |" in text
    assert "| engine | through | case | attention | experts | sum |" in text
    assert "| 1x2 | grpc | 5.0 ! |" in text
    assert "576 greedy tokens" in text


def test_terminal_tables_hold_every_engine() -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        for table in terminal_tables(
            build_rows([turn("transformers", 0.1), turn("fused", 0.05, {"gate": 1.0})])
        ):
            console.print(table)
    assert "fused" in capture.get()
    assert "transformers" in capture.get()


def test_render_replaces_only_what_is_between_the_marks() -> None:
    document = f"before\n{BEGIN_MARK}\nold\n{END_MARK}\nafter\n"
    once = render_into(document, "new")
    assert once == f"before\n{BEGIN_MARK}\n\nnew\n\n{END_MARK}\nafter\n"
    assert render_into(once, "new") == once
    with pytest.raises(ValueError, match="lacks"):
        render_into("nothing", "new")


def test_the_document_shows_the_committed_result() -> None:
    document = DOCUMENT.read_text()
    if not RESULT.exists():
        assert render_into(document, "No run is committed yet.") == document
        return
    assert render_into(document, markdown(json.loads(RESULT.read_text()))) == document


def test_cpuinfo_is_read_for_the_flags_that_matter() -> None:
    text = (
        "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor : 1\nflags: sse\n"
    )
    assert parse_cpuinfo(text) == ("Some CPU", ("avx2", "amx_bf16"))
    assert parse_cpuinfo("CPU part: 1\nFeatures: asimd bf16\n") == ("unknown", ("asimd", "bf16"))


def test_this_machine_can_be_described() -> None:
    machine = describe_machine([0], REPOSITORY)
    assert machine.memory_gib > 0
    assert machine.packages["torch"]


def test_the_bench_checkpoint_has_the_protocols_size() -> None:
    n_parameters = 0
    for plan in tensor_plans(CONFIG):
        n = 1
        for dim in plan.shape:
            n *= dim
        n_parameters += n
    assert n_parameters == pytest.approx(285.5e6, rel=1e-3)


def test_a_checkpoint_is_written_once_repaired_when_torn_and_follows_the_seed(tmp_path: Path) -> None:
    tiny = {**CONFIG, "hidden_size": 16, "vocab_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    tiny |= {"moe_intermediate_size": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "num_attention_heads": 1}
    weights = tmp_path / "a" / "model.safetensors"
    assert make_checkpoint(tmp_path / "a", tiny)
    first = weights.read_bytes()
    assert not make_checkpoint(tmp_path / "a", tiny)
    weights.write_bytes(first[:-10])
    assert not is_complete(tmp_path / "a", tiny)
    assert make_checkpoint(tmp_path / "a", tiny)
    assert weights.read_bytes() == first
    make_checkpoint(tmp_path / "b", tiny, seed=1)
    assert (tmp_path / "b" / "model.safetensors").read_bytes() != first
    assert not is_complete(tmp_path / "a", {**tiny, "vocab_size": 33})
