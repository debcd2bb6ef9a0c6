"""Times each kernel at the shapes of the bench checkpoint's decode step, and their sum.

    python benchmarks/kernels.py [--dtype fp32] [--threads 2]

A lap is eight calls, each with weights of its own as in eight layers, so that nothing comes from the
nearest caches. The shortest lap counts: other load only makes laps longer.
Writes benchmarks/results/kernels-<dtype>.json and prints a table.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from serving_bench.machine import describe_machine
from torch import Tensor

from expertmesh.kernels.activation import swiglu, swiglu_torch
from expertmesh.kernels.attention import mla_paged_attention
from expertmesh.kernels.combine import weighted_sum
from expertmesh.kernels.gate import select_experts, select_experts_torch
from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.linear import HeadProduct, Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm, rms_norm_torch
from expertmesh.kernels.rope import apply_rope, apply_rope_torch

REPOSITORY = Path(__file__).resolve().parents[1]

# The bench checkpoint (docs/benchmarks.md).
LAYERS, DENSE_LAYERS, MOE_LAYERS = 8, 1, 7
HIDDEN, INTER, EXPERT_INTER, VOCAB = 1024, 2816, 256, 32000
HEADS, Q_LORA, KV_LORA, NOPE, ROPE, VALUE = 8, 384, 512, 128, 64, 128
EXPERTS, TOP_K, GROUPS, TOP_K_GROUPS = 32, 4, 4, 2
CACHE_WIDTH = KV_LORA + ROPE
BLOCK_TOKENS = 16

MODES = {
    "native": ComputeMode(),
    "torch": ComputeMode(native=False),
    "torch, tiles": ComputeMode(tile_rows=16, native=False),
}
MEASURE_S = 0.4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape."""

    name: str
    calls: int
    """A decode step's calls of it."""
    n_bytes: float
    """Read and written by one call."""
    flops: float
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """What a case took."""

    mode: str
    tokens: int
    name: str
    calls: int
    us: float
    gb_per_s: float
    gflop_per_s: float


def least_us(run: Callable[[], object]) -> float:
    """Microseconds of one call, in the shortest lap."""
    best_s = float("inf")
    end = time.perf_counter() + MEASURE_S
    while (start := time.perf_counter()) < end:
        for _ in range(LAYERS):
            run()
        best_s = min(best_s, (time.perf_counter() - start) / LAYERS)
    return best_s * 1e6


def in_turns(things: Sequence[T], call: Callable[[T], object]) -> Callable[[], object]:
    """Calls with one after the other."""
    turn = 0

    def run() -> object:
        nonlocal turn
        turn = (turn + 1) % len(things)
        return call(things[turn])

    return run


class Shapes:
    """The cases of one mode and number of tokens."""

    def __init__(self, mode: ComputeMode, dtype: torch.dtype, n_tokens: int, n_context: int) -> None:
        self._mode = mode
        self._dtype = dtype
        self._size = dtype.itemsize
        self._n_tokens = n_tokens
        self._n_context = n_context
        self._generator = torch.Generator().manual_seed(0)

    def cases(self) -> list[Case]:
        """All kernels of a decode step."""
        return [
            self._linear("q_a and kv_a", LAYERS, HIDDEN, Q_LORA + CACHE_WIDTH),
            self._linear("q_b", LAYERS, Q_LORA, HEADS * (NOPE + ROPE)),
            self._linear("o", LAYERS, HEADS * VALUE, HIDDEN),
            self._heads("absorb keys", NOPE, KV_LORA),
            self._heads("absorb values", KV_LORA, VALUE),
            self._attention(),
            self._linear("dense gate and up", DENSE_LAYERS, HIDDEN, 2 * INTER),
            self._linear("dense down", DENSE_LAYERS, INTER, HIDDEN),
            self._linear("shared gate and up", MOE_LAYERS, HIDDEN, 2 * EXPERT_INTER),
            self._linear("shared down", MOE_LAYERS, EXPERT_INTER, HIDDEN),
            self._linear("gate logits (fp32)", MOE_LAYERS, HIDDEN, EXPERTS, torch.float32),
            self._select(),
            self._experts(),
            self._combine(),
            self._linear("head", 1, HIDDEN, VOCAB, copies=1),
            self._norm("norm of the hidden state", 2 * LAYERS + 1, HIDDEN),
            self._norm("norms of the latents", 2 * LAYERS, KV_LORA),
            self._rope("rope of queries", HEADS),
            self._rope("rope of keys", 1),
            self._swiglu(),
        ]

    def _randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self._generator) * 0.05
        return values.to(dtype or self._dtype)

    def _linear(
        self, name: str, calls: int, k: int, n: int, dtype: torch.dtype | None = None, copies: int = LAYERS
    ) -> Case:
        dtype = dtype or self._dtype
        layers = [Linear(self._randn(n, k, dtype=dtype), None, self._mode) for _ in range(copies)]
        x = self._randn(self._n_tokens, k, dtype=dtype)
        n_bytes = (n * k + self._n_tokens * (n + k)) * dtype.itemsize
        return Case(name, calls, n_bytes, 2.0 * self._n_tokens * n * k, in_turns(layers, lambda f: f(x)))

    def _heads(self, name: str, i: int, o: int) -> Case:
        products = [HeadProduct(self._randn(HEADS, i, o), self._mode) for _ in range(LAYERS)]
        x = self._randn(self._n_tokens, HEADS, i)
        n_bytes = HEADS * (i * o + self._n_tokens * (i + o)) * self._size
        flops = 2.0 * self._n_tokens * HEADS * i * o
        return Case(name, LAYERS, n_bytes, flops, in_turns(products, lambda f: f(x)))

    def _attention(self) -> Case:
        blocks = -(-(self._n_context + 1) // BLOCK_TOKENS)
        caches = [self._randn(self._n_tokens * blocks, BLOCK_TOKENS, CACHE_WIDTH) for _ in range(LAYERS)]
        tables = torch.arange(self._n_tokens * blocks).view(self._n_tokens, blocks)
        q = self._randn(self._n_tokens, HEADS, CACHE_WIDTH)

        def run(cache: Tensor) -> Tensor:
            return mla_paged_attention(
                q,
                cache,
                query_lens=(1,) * self._n_tokens,
                context_lens=(self._n_context,) * self._n_tokens,
                block_tables_SB=tables,
                value_dim=KV_LORA,
                softmax_scale=0.07,
                mode=self._mode,
            )

        n_keys = self._n_tokens * (self._n_context + 1)
        n_bytes = (n_keys * CACHE_WIDTH + self._n_tokens * HEADS * (CACHE_WIDTH + KV_LORA)) * self._size
        flops = 2.0 * n_keys * HEADS * (CACHE_WIDTH + KV_LORA)
        return Case("attention", LAYERS, n_bytes, flops, in_turns(caches, run))

    def _experts(self) -> Case:
        layers = [
            GroupedFfn.from_stacks(
                self._randn(EXPERTS, 2 * EXPERT_INTER, HIDDEN),
                self._randn(EXPERTS, HIDDEN, EXPERT_INTER),
                self._mode,
            )
            for _ in range(LAYERS)
        ]
        chosen = torch.stack(
            [torch.randperm(EXPERTS, generator=self._generator)[:TOP_K] for _ in range(self._n_tokens)]
        )
        counts: list[int] = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        n_rows = self._n_tokens * TOP_K
        x = self._randn(n_rows, HIDDEN)
        weights = 3 * HIDDEN * EXPERT_INTER
        n_bytes = (sum(n > 0 for n in counts) * weights + 2 * n_rows * HIDDEN) * self._size
        flops = 2.0 * n_rows * weights
        return Case("routed experts", MOE_LAYERS, n_bytes, flops, in_turns(layers, lambda f: f(x, counts)))

    def _select(self) -> Case:
        logits = self._randn(self._n_tokens, EXPERTS, dtype=torch.float32)
        bias = self._randn(EXPERTS, dtype=torch.float32)
        select = select_experts if self._mode.native else select_experts_torch

        def run() -> object:
            return select(
                logits,
                bias,
                scoring="sigmoid",
                selection="group_top2",
                top_k=TOP_K,
                n_groups=GROUPS,
                top_k_groups=TOP_K_GROUPS,
                renormalise=True,
                scale=2.5,
            )

        return Case("choice of experts", MOE_LAYERS, 4.0 * logits.numel(), 0.0, run)

    def _combine(self) -> Case:
        y = self._randn(self._n_tokens, TOP_K, HIDDEN)
        weights = self._randn(self._n_tokens, TOP_K, dtype=torch.float32)
        n_bytes = float(y.numel() * self._size + self._n_tokens * HIDDEN * 4)
        return Case("weighted sum", MOE_LAYERS, n_bytes, 2.0 * y.numel(), lambda: weighted_sum(y, weights))

    def _norm(self, name: str, calls: int, width: int) -> Case:
        x, w = self._randn(self._n_tokens, width), self._randn(width)
        norm = rms_norm if self._mode.native else rms_norm_torch
        return Case(name, calls, 2.0 * x.numel() * self._size, 0.0, lambda: norm(x, w, 1e-6))

    def _rope(self, name: str, heads: int) -> Case:
        x = self._randn(self._n_tokens, heads, NOPE + ROPE)[..., NOPE:]
        cos = self._randn(self._n_tokens, ROPE // 2, dtype=torch.float32)
        rope = apply_rope if self._mode.native else apply_rope_torch
        return Case(name, LAYERS, 2.0 * x.numel() * self._size, 0.0, lambda: rope(x, cos, cos, True))

    def _swiglu(self) -> Case:
        x = self._randn(self._n_tokens, 2 * EXPERT_INTER)
        activation = swiglu if self._mode.native else swiglu_torch
        return Case("swiglu", LAYERS, 1.5 * x.numel() * self._size, 0.0, lambda: activation(x))


def measure(mode: str, dtype: torch.dtype, n_tokens: int, n_context: int) -> list[Timing]:
    """Every case once."""
    timings = []
    for case in Shapes(MODES[mode], dtype, n_tokens, n_context).cases():
        us = least_us(case.run)
        timings.append(
            Timing(
                mode, n_tokens, case.name, case.calls, us, case.n_bytes / us / 1e3, case.flops / us / 1e3
            )
        )
    return timings


def step_ms(timings: Sequence[Timing]) -> float:
    """The kernels of one decode step together."""
    return sum(t.us * t.calls for t in timings) / 1e3


def print_table(console: Console, timings: Sequence[Timing]) -> None:
    """One mode and number of tokens."""
    title = f"{timings[0].mode}, {timings[0].tokens} tokens: {step_ms(timings):.2f} ms a decode step"
    table = Table("kernel", "us", "calls a step", "ms a step", "GB/s", "GFLOP/s", title=title)
    for t in timings:
        table.add_row(
            *(t.name, f"{t.us:.1f}", str(t.calls), f"{t.us * t.calls / 1e3:.2f}"),
            *(f"{t.gb_per_s:.1f}", f"{t.gflop_per_s:.0f}"),
        )
    console.print(table)


def main(
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens in the cache of each sequence.")] = 80,
    mode: Annotated[list[str] | None, typer.Option(help="Only these modes; nothing is written.")] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Only these batches; nothing is written.")
    ] = None,
) -> None:
    """Measures and writes the results."""
    torch.set_num_threads(threads)
    console = Console(width=110)
    results: list[Timing] = []
    for name in mode or list(MODES):
        for n_tokens in tokens or [1, 8, 32]:
            timings = measure(name, torch.bfloat16 if dtype == "bf16" else torch.float32, n_tokens, context)
            print_table(console, timings)
            results.extend(timings)
    if mode or tokens:
        return
    machine = describe_machine(os.sched_getaffinity(0), REPOSITORY)
    path = REPOSITORY / "benchmarks" / "results" / f"kernels-{dtype}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": asdict(machine),
        "dtype": dtype,
        "threads": threads,
        "context_tokens": context,
        "timings": [asdict(t) for t in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"wrote {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    typer.run(main)
