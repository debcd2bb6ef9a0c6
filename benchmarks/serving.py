"""Measures serving: this project fused and sharded, beside transformers, in one run, in turns.

    python benchmarks/serving.py [--quick]
    python benchmarks/serving.py --render

The protocol stands in docs/benchmarks.md; the parts are in serving_bench/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from serving_bench.engine import Dtype, Engine, EngineError, EngineSettings
from serving_bench.expertmesh_engine import ExpertmeshEngine
from serving_bench.gate import GateError, GateResult, run_gate
from serving_bench.llama_engine import LlamaEngine
from serving_bench.machine import describe_machine
from serving_bench.processors import MARKER_VARIABLE, CpuWatch
from serving_bench.protocol import FOREIGN_CORES_LIMIT, Protocol, ProtocolSettings, stop_engine
from serving_bench.results import as_json, build_rows, write_json
from serving_bench.tables import markdown, render_into, terminal_tables
from serving_bench.transformers_engine import TransformersEngine
from serving_bench.workload import draw_prompts, protocol_cases

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "benchmarks" / "checkpoints" / "bench"
RESULT = REPOSITORY / "benchmarks" / "results" / "serving.json"
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"

OUTPUT_TOKENS = 64
GATE_PROMPTS, GATE_PROMPT_TOKENS, GATE_OUTPUT_TOKENS = 8, 32, 64
QUICK_OUTPUT_TOKENS, QUICK_GATE_PROMPTS, QUICK_GATE_OUTPUT_TOKENS = 16, 2, 8
REDIRECTED_WIDTH = 120
QUIET_SAMPLE_S = 2.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def build_engines(names: Sequence[str], overrides: Sequence[str]) -> list[Engine]:
    """Engines by their names. Raises typer.BadParameter for a name that means nothing."""
    engines: list[Engine] = []
    for name in names:
        if name == TransformersEngine.name:
            engines.append(TransformersEngine())
        elif name == LlamaEngine.name:
            engines.append(LlamaEngine())
        elif (engine := ExpertmeshEngine.from_name(name, overrides)) is not None:
            engines.append(engine)
        else:
            raise typer.BadParameter(
                f"unknown engine {name!r}: transformers, llama.cpp, fused, or routers x hosts as 1x2"
            )
    return engines


def split_list(text: str) -> list[str]:
    """`a,b` as a list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parse_dtypes(text: str) -> list[Dtype]:
    """`bf16,fp32` as a list. Raises typer.BadParameter for another name."""
    known: dict[str, Dtype] = {"fp32": "fp32", "bf16": "bf16"}
    words = split_list(text)
    if unknown := [word for word in words if word not in known]:
        raise typer.BadParameter(f"unknown precision {unknown[0]!r}: fp32 or bf16")
    return [known[word] for word in words]


def parse_counts(text: str) -> tuple[int, ...]:
    """`1,8,32` as numbers. Raises typer.BadParameter for anything below 1."""
    words = split_list(text)
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers")
    return tuple(int(word) for word in words)


def render() -> None:
    """Writes the committed result's tables into the document."""
    figures = markdown(json.loads(RESULT.read_text()))
    DOCUMENT.write_text(render_into(DOCUMENT.read_text(), figures))


def reserve_cores(n: int) -> list[int]:
    """Confines this process, and so all that it starts, to `n` cores."""
    available = sorted(os.sched_getaffinity(0))
    if n > len(available):
        raise typer.BadParameter(f"--cores {n}: only {len(available)} are available")
    os.sched_setaffinity(0, available[:n])
    return available[:n]


def engine_environment(marker: str) -> dict[str, str]:
    """This process's, marked, and without an address that would have engines join a stranger's cluster."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**inherited, MARKER_VARIABLE: marker}


def main(
    quick: Annotated[
        bool, typer.Option(help="A minute or two: one round, short answers, no JSON.")
    ] = False,
    engines: Annotated[str, typer.Option(help="Which, in their order.")] = "transformers,fused,1x2",
    concurrency: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,32",
    dtype: Annotated[str, typer.Option(help="bf16, fp32 or both.")] = "bf16",
    prompt_tokens: Annotated[
        str, typer.Option(help="Prompt lengths; absent: 32, and one case of 1024.", show_default=False)
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 3,
    retries: Annotated[int, typer.Option(min=0, help="Of a turn beside foreign work.")] = 2,
    cores: Annotated[int, typer.Option(min=1, help="Cores and compute threads in all.")] = 2,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="dotted.key=value for this project's deployments.")
    ] = None,
    skip_gate: Annotated[bool, typer.Option("--skip-gate", help="Without the fp32 gate.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON; benchmarks/results/serving.json if absent.")
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render", help="Only write the committed JSON into docs/benchmarks.md.")
    ] = False,
) -> None:
    """Measures serving: this project fused and sharded, beside transformers."""
    if render_only:
        render()
        return
    chosen = build_engines(split_list(engines), overrides or [])
    counts, lengths = parse_counts(concurrency), parse_counts(prompt_tokens)
    if quick:
        rounds, lengths = 1, lengths or (32,)
    cases = protocol_cases(counts, lengths, QUICK_OUTPUT_TOKENS if quick else OUTPUT_TOKENS)
    dtypes = parse_dtypes(dtype)
    used_cores = reserve_cores(cores)
    machine = describe_machine(used_cores, REPOSITORY)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    make = REPOSITORY / "tools" / "make_bench_checkpoint.py"
    subprocess.run([sys.executable, str(make), str(CHECKPOINT)], check=True, stdout=subprocess.DEVNULL)
    vocab_size = json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"]

    marker = uuid.uuid4().hex
    watch = CpuWatch(marker, used_cores)
    log_folder = Path(tempfile.mkdtemp(prefix="expertmesh-benchmark-"))
    console.print(f"{machine.cpu_model}, {cores} cores; logs in {log_folder}")
    if (foreign := watch.foreign_cores(QUIET_SAMPLE_S)) > FOREIGN_CORES_LIMIT:
        console.print(f"[bold yellow]The machine is busy ({foreign:.2f} cores): turns will be rejected.[/]")
    base = EngineSettings(
        checkpoint=CHECKPOINT,
        dtype="fp32",
        threads=cores,
        environment=engine_environment(marker),
        log_folder=log_folder,
    )
    try:
        gate: list[GateResult] = []
        if not skip_gate:
            n_prompts = QUICK_GATE_PROMPTS if quick else GATE_PROMPTS
            gate = run_gate(
                chosen,
                TransformersEngine(),
                base,
                # With this key no routing score is within 1e-5 of a tie: a difference is a fault.
                draw_prompts(n_prompts, GATE_PROMPT_TOKENS, vocab_size, key="gate"),
                QUICK_GATE_OUTPUT_TOKENS if quick else GATE_OUTPUT_TOKENS,
                lambda engine: stop_engine(engine, watch, console.print),
            )
            for passed in gate:
                console.print(
                    f"fp32 gate: {passed.engine} over {passed.transport}: {passed.n_tokens} tokens equal"
                )
        protocol = Protocol(
            chosen, cases, ProtocolSettings(rounds, retries, vocab_size), watch, console.print
        )
        turns, notes = protocol.run(base, dtypes)
    except (GateError, EngineError) as error:
        console.print(f"[bold red]Stopped:[/] {error}", markup=True)
        raise typer.Exit(1) from error

    rows = build_rows(turns)
    terminal = Console(width=None if sys.stdout.isatty() else REDIRECTED_WIDTH)
    for table in terminal_tables(rows):
        terminal.print(table)
    if output is not None or not quick:
        path = output or RESULT
        result = as_json(
            machine=machine,
            threads=cores,
            gate=gate,
            notes=notes,
            rows=rows,
            turns=turns,
            started_at=started_at,
        )
        write_json(path, result)
        console.print(f"wrote {path}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
