"""Each kernel against its formula in float64: compiled and plain torch, both types, empty inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.activation import swiglu, swiglu_torch
from expertmesh.kernels.attention import mla_paged_attention
from expertmesh.kernels.grouped_ffn import ExpertFfn, GroupedFfn
from expertmesh.kernels.linear import HeadProduct, Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm, rms_norm_torch
from expertmesh.kernels.rope import apply_rope, apply_rope_torch

MODES = [
    pytest.param(ComputeMode(), id="native"),
    pytest.param(ComputeMode(native=False), id="torch"),
    pytest.param(ComputeMode(tile_rows=16, tile_keys=32, native=False), id="tiled"),
]
# One rounding of the result; products of bf16 also round what lies between.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def close(actual: Tensor, expected: Tensor) -> None:
    """Compares to float64, relative to the largest value expected."""
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[actual.dtype]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Standard normal values, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_tokens", [0, 1, 2, 5, 16, 33, 70])
@pytest.mark.parametrize(("k", "n"), [(64, 96), (33, 17), (1, 1), (130, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dtype: torch.dtype, mode: ComputeMode, n_tokens: int, k: int, n: int, bias: bool) -> None:
    x, w = randn(n_tokens, k, dtype=dtype), randn(n, k, dtype=dtype, seed=1)
    b = randn(n, dtype=dtype, seed=2) if bias else None
    y = Linear(w, b, mode)(x)
    assert y.dtype == dtype
    expected = x.double() @ w.double().T
    close(y, expected if b is None else expected + b.double())


@pytest.mark.parametrize("mode", MODES)
def test_linear_of_rows_that_are_not_contiguous(dtype: torch.dtype, mode: ComputeMode) -> None:
    wide = randn(9, 100, dtype=dtype)
    w = randn(24, 64, dtype=dtype, seed=1)
    close(Linear(w, None, mode)(wide[:, 20:84]), wide[:, 20:84].double() @ w.double().T)


@pytest.mark.parametrize("mode", MODES)
def test_linear_of_bf16_to_fp32(mode: ComputeMode) -> None:
    x, w = randn(9, 64, dtype=torch.bfloat16), randn(24, 64, dtype=torch.bfloat16, seed=1)
    y = Linear(w, None, mode)(x, torch.float32)
    assert y.dtype == torch.float32
    expected = x.double() @ w.double().T
    assert (y - expected).abs().max() < (2e-5 if mode.native else 1e-2) * expected.abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_tokens", [0, 1, 3, 17, 50])
def test_head_product(dtype: torch.dtype, mode: ComputeMode, n_tokens: int) -> None:
    x, w = randn(n_tokens, 3, 48, dtype=dtype), randn(3, 48, 80, dtype=dtype, seed=1)
    close(HeadProduct(w, mode)(x), torch.einsum("thi,hio->tho", x.double(), w.double()))
    # The rotary part stands behind the part that is multiplied: rows are a slice of something wider.
    wide = randn(n_tokens, 3, 60, dtype=dtype)
    close(
        HeadProduct(w, mode)(wide[..., :48]),
        torch.einsum("thi,hio->tho", wide[..., :48].double(), w.double()),
    )
    # A transposed view of weights stored the other way round.
    other = randn(3, 80, 48, dtype=dtype, seed=1).transpose(1, 2)
    close(HeadProduct(other, mode)(x), torch.einsum("thi,hio->tho", x.double(), other.double()))


Norm = Callable[[Tensor, Tensor, float], Tensor]
Rope = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@pytest.mark.parametrize("norm", [rms_norm, rms_norm_torch])
@pytest.mark.parametrize("n_tokens", [0, 1, 33])
@pytest.mark.parametrize("width", [1, 31, 64, 1024])
def test_rms_norm(dtype: torch.dtype, norm: Norm, n_tokens: int, width: int) -> None:
    x, w = randn(n_tokens, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    y = norm(x, w, 1e-6)
    assert y.dtype == dtype
    x64 = x.double()
    close(y, x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double())


@pytest.mark.parametrize("norm", [rms_norm, rms_norm_torch])
def test_rms_norm_of_a_slice_with_a_weight_of_another_type(dtype: torch.dtype, norm: Norm) -> None:
    x, w = randn(5, 96, dtype=dtype)[:, :64], randn(64, dtype=torch.float32, seed=1)
    x64 = x.double()
    close(norm(x, w, 1e-6), x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double())


@pytest.mark.parametrize("rope", [apply_rope, apply_rope_torch])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("half", [1, 8, 19, 32])
@pytest.mark.parametrize("n_tokens", [0, 1, 9])
def test_rope_rotates_pairs_as_complex_numbers(
    dtype: torch.dtype, rope: Rope, n_tokens: int, interleaved: bool, half: int
) -> None:
    wide = randn(n_tokens, 2, 24 + 2 * half, dtype=dtype)
    x = wide[..., 24:]
    angle = randn(n_tokens, half, dtype=torch.float32, seed=1)
    y = rope(x, angle.cos(), angle.sin(), interleaved)
    assert y.dtype == dtype
    x64 = x.double()
    if interleaved:
        pairs = torch.complex(x64[..., 0::2].contiguous(), x64[..., 1::2].contiguous())
    else:
        pairs = torch.complex(x64[..., :half].contiguous(), x64[..., half:].contiguous())
    turned = pairs * torch.polar(
        torch.ones(n_tokens, 1, half, dtype=torch.float64), angle.double()[:, None]
    )
    parts = (turned.real, turned.imag)
    close(y, torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1))


@pytest.mark.parametrize("activation", [swiglu, swiglu_torch])
@pytest.mark.parametrize("n_tokens", [0, 1, 12])
def test_swiglu(dtype: torch.dtype, activation: Callable[[Tensor], Tensor], n_tokens: int) -> None:
    x = randn(n_tokens, 90, dtype=dtype)
    x[:, 0] = -300.0
    x[:, 1] = 300.0
    gate, up = x.double().chunk(2, -1)
    close(activation(x), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [(0, 0, 0), (1, 0, 0), (0, 5, 1), (16, 17, 40), (0, 0, 3)])
@pytest.mark.parametrize(("hidden", "inner"), [(40, 24), (64, 32), (96, 48), (33, 7)])
def test_grouped_ffn(
    dtype: torch.dtype, mode: ComputeMode, rows: tuple[int, ...], hidden: int, inner: int
) -> None:
    gate_up = randn(3, 2 * inner, hidden, dtype=dtype, seed=1)
    down = randn(3, hidden, inner, dtype=dtype, seed=2)
    x = randn(sum(rows), hidden, dtype=dtype)
    y = GroupedFfn.from_stacks(gate_up, down, mode)(x, rows)
    assert y.dtype == dtype
    parts = []
    for expert, part in enumerate(x.double().split(list(rows))):
        gate, up = (part @ gate_up[expert].double().T).chunk(2, -1)
        parts.append((gate * gate.sigmoid() * up) @ down[expert].double().T)
    close(y, torch.cat(parts))


def test_grouped_ffn_refuses_counts_that_do_not_add_up() -> None:
    ffn = GroupedFfn.from_stacks(torch.zeros(2, 8, 4), torch.zeros(2, 4, 4), ComputeMode())
    with pytest.raises(ValueError, match="counts 2 rows of 2 experts; given are 3 rows and 2 experts"):
        ffn(torch.zeros(3, 4), [1, 1])
    with pytest.raises(ValueError, match="of 1 experts"):
        ffn(torch.zeros(3, 4), [3])


def test_grouped_ffn_of_experts_that_are_shared(dtype: torch.dtype) -> None:
    """One expert in two layers, twice in one of them."""
    a, b = (
        ExpertFfn(randn(24, 40, dtype=dtype, seed=s), randn(24, 40, dtype=dtype), down, ComputeMode())
        for s, down in ((1, randn(40, 24, dtype=dtype)), (2, randn(40, 24, dtype=dtype, seed=3)))
    )
    x = randn(9, 40, dtype=dtype)
    alone, shared = GroupedFfn([a], ComputeMode()), GroupedFfn([a, b, a], ComputeMode())
    del a, b
    y = shared(x, [4, 0, 5])
    assert torch.equal(y, alone(x, [9]))
    assert not torch.equal(shared(x, [0, 9, 0]), y)


def test_experts_that_do_not_fit_together() -> None:
    w = randn(8, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="no expert has gate"):
        ExpertFfn(w, w, w, ComputeMode())
    wide = randn(16, 4, dtype=torch.float32)
    experts = [ExpertFfn(w, w, w.T, ComputeMode()), ExpertFfn(wide, wide, wide.T, ComputeMode())]
    with pytest.raises(ValueError, match="2 shapes"):
        GroupedFfn(experts, ComputeMode())


def attend(entries: Tensor, queries: Tensor, start: int, value_dim: int, scale: float) -> Tensor:
    """Causal attention in float64 of the queries at positions `start` and up."""
    outs = []
    for position in range(start, queries.shape[0]):
        seen = entries[: position + 1].double()
        weights = (queries[position].double() @ seen.T * scale).softmax(-1)
        outs.append(weights @ seen[:, :value_dim])
    return torch.stack(outs)


BATCHES = [
    pytest.param([(0, 0, 1)], id="first token"),
    pytest.param([(0, 6, 7), (1, 39, 40), (2, 129, 130)], id="decode"),
    pytest.param([(2, 0, 130)], id="prefill"),
    pytest.param([(0, 0, 7), (1, 30, 40), (2, 129, 130), (3, 0, 1)], id="mixed"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunks", BATCHES)
@pytest.mark.parametrize("block_tokens", [1, 5, 16])
@pytest.mark.parametrize("padding_rows", [0, 3])
def test_attention(
    attention_case: Callable[..., object],
    dtype: torch.dtype,
    mode: ComputeMode,
    chunks: list[tuple[int, int, int]],
    block_tokens: int,
    padding_rows: int,
) -> None:
    case = attention_case([7, 40, 130, 1], dtype)
    outs = case.run(chunks, mode, block_tokens=block_tokens, padding_rows=padding_rows, garbage=50.0)
    for (s, start, end), out in zip(chunks, outs, strict=True):
        close(out, attend(case.entries[s], case.queries[s][:end], start, case.value_dim, case.scale))


@pytest.mark.parametrize("mode", MODES)
def test_attention_of_an_empty_batch(dtype: torch.dtype, mode: ComputeMode) -> None:
    for padding in (0, 16):
        out = mla_paged_attention(
            torch.ones(padding, 2, 8, dtype=dtype),
            torch.zeros(4, 2, 8, dtype=dtype),
            query_lens=(),
            context_lens=(),
            block_tables_SB=torch.zeros(0, 0, dtype=torch.int64),
            value_dim=6,
            softmax_scale=1.0,
            mode=mode,
        )
        assert torch.equal(out, torch.zeros(padding, 2, 6, dtype=dtype))
