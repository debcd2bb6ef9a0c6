"""Deterministic mode: a row's result does not depend, in any bit, on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expertmesh.kernels.activation import swiglu, swiglu_torch
from expertmesh.kernels.gate import select_experts, select_experts_torch
from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.linear import HeadProduct, Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm, rms_norm_torch
from expertmesh.kernels.rope import apply_rope, apply_rope_torch

MODES = [
    pytest.param(ComputeMode(tile_rows=16, tile_keys=32), id="native"),
    pytest.param(ComputeMode(tile_rows=16, tile_keys=32, native=False), id="torch"),
]
BATCHES = [1, 2, 3, 15, 16, 17, 33, 64, 150]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Standard normal values, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_stay_the_same(compute: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Every row alone, in batches of many sizes, at other positions, beside other rows."""
    alone = torch.cat([compute(row) for row in rows.split(1)])
    for size in BATCHES:
        for start in (0, 1, rows.shape[0] - size):
            if 0 <= start <= rows.shape[0] - size:
                assert torch.equal(compute(rows[start : start + size]), alone[start : start + size]), size
    for seed in range(3):
        order = torch.randperm(rows.shape[0], generator=torch.Generator().manual_seed(seed))
        assert torch.equal(compute(rows[order]), alone[order])
    louder = rows.clone()
    louder[1:] *= 1000
    assert torch.equal(compute(louder)[0], alone[0])


@pytest.mark.parametrize(("k", "n"), [(64, 96), (33, 17), (1024, 320), (384, 1536), (1, 1), (256, 1024)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_linear(dtype: torch.dtype, mode: ComputeMode, k: int, n: int, bias: bool) -> None:
    w = randn(n, k, dtype=dtype, seed=1)
    layer = Linear(w, randn(n, dtype=dtype, seed=2) if bias else None, mode)
    rows_stay_the_same(layer, randn(150, k, dtype=dtype))


@pytest.mark.parametrize("n_heads", [1, 3, 8])
@pytest.mark.parametrize(("i", "o"), [(48, 80), (128, 512), (512, 128), (7, 5)])
@pytest.mark.parametrize("mode", MODES)
def test_head_product(dtype: torch.dtype, mode: ComputeMode, n_heads: int, i: int, o: int) -> None:
    w = randn(n_heads, i, o, dtype=dtype, seed=1)
    product = HeadProduct(w, mode)
    rows_stay_the_same(product, randn(150, n_heads, i, dtype=dtype))
    wide = randn(150, n_heads, i + 9, dtype=dtype)
    rows_stay_the_same(lambda x: product(x[..., 9:]), wide)


@pytest.mark.parametrize("width", [1, 31, 65, 384, 1024, 7168])
@pytest.mark.parametrize("norm", [rms_norm, rms_norm_torch])
def test_rms_norm(dtype: torch.dtype, norm: Callable[..., Tensor], width: int) -> None:
    w = randn(width, dtype=dtype, seed=1)
    rows_stay_the_same(lambda x: norm(x, w, 1e-6), randn(150, width, dtype=dtype))


@pytest.mark.parametrize("width", [2, 30, 66, 512, 5632])
@pytest.mark.parametrize("activation", [swiglu, swiglu_torch])
def test_swiglu(dtype: torch.dtype, activation: Callable[[Tensor], Tensor], width: int) -> None:
    rows_stay_the_same(activation, randn(150, width, dtype=dtype))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("n_heads", [1, 5])
@pytest.mark.parametrize("rope", [apply_rope, apply_rope_torch])
def test_rope(dtype: torch.dtype, rope: Callable[..., Tensor], interleaved: bool, n_heads: int) -> None:
    """The angles stand beside the rows that they turn, so that both move together."""

    def turn(x: Tensor) -> Tensor:
        angles = x[:, 0, 14:].float()
        return rope(x[..., :14], angles.cos(), angles.sin(), interleaved)

    rows_stay_the_same(turn, randn(150, n_heads, 21, dtype=dtype))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("n_experts", [12, 32, 160, 256])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("select", [select_experts, select_experts_torch])
def test_gate(
    select: Callable[..., tuple[Tensor, Tensor]], scoring: str, n_experts: int, with_bias: bool
) -> None:
    bias = randn(n_experts, dtype=torch.float32, seed=1) if with_bias else None

    def weights_and_ids(logits: Tensor) -> Tensor:
        weights, ids = select(
            logits,
            bias,
            scoring=scoring,
            selection="group_top2",
            top_k=4,
            n_groups=4,
            top_k_groups=2,
            renormalise=True,
            scale=2.5,
        )
        return torch.cat((weights, ids.float()), 1)

    rows_stay_the_same(weights_and_ids, randn(150, n_experts, dtype=torch.float32))


@pytest.mark.parametrize(("hidden", "inner"), [(40, 24), (1024, 256), (33, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_grouped_ffn(dtype: torch.dtype, mode: ComputeMode, hidden: int, inner: int) -> None:
    n_experts = 3
    ffn = GroupedFfn.from_stacks(
        randn(n_experts, 2 * inner, hidden, dtype=dtype, seed=1) * 0.1,
        randn(n_experts, hidden, inner, dtype=dtype, seed=2) * 0.1,
        mode,
    )
    for expert in range(n_experts):
        before, behind = 17 * expert, 40 * (n_experts - 1 - expert)

        def beside_others(
            x: Tensor, expert: int = expert, before: int = before, behind: int = behind
        ) -> Tensor:
            counts = [0] * n_experts
            counts[0], counts[-1] = before, behind
            counts[expert] += x.shape[0]
            others = [randn(n, hidden, dtype=dtype, seed=3) for n in (before, behind)]
            y = ffn(torch.cat((others[0], x, others[1])), counts)
            return y[before : before + x.shape[0]]

        rows = randn(70, hidden, dtype=dtype)
        rows_stay_the_same(beside_others, rows)
        counts = [0] * n_experts
        counts[expert] = 70
        assert torch.equal(beside_others(rows), ffn(rows, counts))


def in_chunks(sequence: int, length: int, size: int) -> list[tuple[int, int, int]]:
    """A sequence's chunks of `size` tokens."""
    return [(sequence, start, min(start + size, length)) for start in range(0, length, size)]


@pytest.mark.parametrize(
    "shape", [(3, 40, 32), (1, 24, 16), (8, 576, 512), (5, 33, 17), (13, 64, 48), (2, 24, 16)]
)
@pytest.mark.parametrize("length", [1, 31, 33, 100])
@pytest.mark.parametrize("mode", MODES)
def test_attention_in_chunks(
    attention_case: Callable[..., object],
    dtype: torch.dtype,
    mode: ComputeMode,
    shape: tuple[int, int, int],
    length: int,
) -> None:
    n_heads, width, value_dim = shape
    case = attention_case([length], dtype, n_heads=n_heads, width=width, value_dim=value_dim)
    (whole,) = case.run([(0, 0, length)], mode)
    for size in (1, 3, 7):
        parts = [case.run([chunk], mode)[0] for chunk in in_chunks(0, length, size)]
        assert torch.equal(torch.cat(parts), whole), size
    # All chunks in one batch, as if each were a sequence of its own.
    assert torch.equal(torch.cat(case.run(in_chunks(0, length, 7), mode)), whole)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attention_beside_others(
    attention_case: Callable[..., object], mode: ComputeMode, data: st.DataObject
) -> None:
    """A sequence's outputs do not depend on neighbours, block tables, free blocks or what lies in them."""
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    case = attention_case(lengths, dtype)
    chunks = [(s, data.draw(st.integers(0, n - 1)), n) for s, n in enumerate(lengths)]
    chunks = data.draw(st.permutations(chunks))
    together = case.run(
        chunks,
        mode,
        block_tokens=data.draw(st.sampled_from([1, 4, 16, 48])),
        extra_blocks=data.draw(st.integers(0, 9)),
        table_seed=data.draw(st.integers(0, 99)),
        padding_rows=data.draw(st.integers(0, 16)),
        garbage=data.draw(st.sampled_from([0.0, 1e4, float("inf"), float("nan")])),
    )
    for chunk, out in zip(chunks, together, strict=True):
        assert torch.equal(out, case.run([chunk], mode)[0])
