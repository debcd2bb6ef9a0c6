"""Each kernel against its formula in float64, both modes, both types, empty inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.activation import swiglu
from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.linear import Linear, head_product
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm
from expertmesh.kernels.rope import apply_rope

MODES = [
    pytest.param(ComputeMode(), id="fast"),
    pytest.param(ComputeMode(tile_rows=16, tile_keys=32), id="tiled"),
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
@pytest.mark.parametrize("n_tokens", [0, 1, 3, 17])
def test_head_product(dtype: torch.dtype, mode: ComputeMode, n_tokens: int) -> None:
    x, w = randn(n_tokens, 3, 48, dtype=dtype), randn(3, 48, 80, dtype=dtype, seed=1)
    close(head_product(x, w, mode), torch.einsum("thi,hio->tho", x.double(), w.double()))
    # The rotary part stands behind the part that is multiplied: rows are a slice of something wider.
    wide = randn(n_tokens, 3, 60, dtype=dtype)
    close(
        head_product(wide[..., :48], w, mode),
        torch.einsum("thi,hio->tho", wide[..., :48].double(), w.double()),
    )
    # A transposed view of weights stored the other way round.
    other = randn(3, 80, 48, dtype=dtype, seed=1).transpose(1, 2)
    close(head_product(x, other, mode), torch.einsum("thi,hio->tho", x.double(), other.double()))


@pytest.mark.parametrize("n_tokens", [0, 1, 33])
@pytest.mark.parametrize("width", [1, 31, 64, 1024])
def test_rms_norm(dtype: torch.dtype, n_tokens: int, width: int) -> None:
    x, w = randn(n_tokens, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    y = rms_norm(x, w, 1e-6)
    assert y.dtype == dtype
    x64 = x.double()
    close(y, x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double())


def test_rms_norm_of_a_slice(dtype: torch.dtype) -> None:
    x, w = randn(5, 96, dtype=dtype)[:, :64], randn(64, dtype=dtype, seed=1)
    x64 = x.double()
    close(rms_norm(x, w, 1e-6), x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w.double())


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("n_tokens", [0, 1, 9])
def test_rope_rotates_pairs_as_complex_numbers(
    dtype: torch.dtype, n_tokens: int, interleaved: bool
) -> None:
    wide = randn(n_tokens, 2, 40, dtype=dtype)
    x = wide[..., 24:]
    angle = randn(n_tokens, 8, dtype=torch.float32, seed=1)
    y = apply_rope(x, angle.cos(), angle.sin(), interleaved)
    assert y.dtype == dtype
    x64 = x.double()
    if interleaved:
        pairs = torch.complex(x64[..., 0::2].contiguous(), x64[..., 1::2].contiguous())
    else:
        pairs = torch.complex(x64[..., :8].contiguous(), x64[..., 8:].contiguous())
    turned = pairs * torch.polar(torch.ones(n_tokens, 1, 8, dtype=torch.float64), angle.double()[:, None])
    parts = (turned.real, turned.imag)
    close(y, torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1))


@pytest.mark.parametrize("n_tokens", [0, 1, 12])
def test_swiglu(dtype: torch.dtype, n_tokens: int) -> None:
    x = randn(n_tokens, 90, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    close(swiglu(x), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [(0, 0, 0), (1, 0, 0), (0, 5, 1), (16, 17, 40), (0, 0, 3)])
def test_grouped_ffn(dtype: torch.dtype, mode: ComputeMode, rows: tuple[int, ...]) -> None:
    gate_up = randn(3, 48, 40, dtype=dtype, seed=1)
    down = randn(3, 40, 24, dtype=dtype, seed=2)
    x = randn(sum(rows), 40, dtype=dtype)
    y = GroupedFfn(gate_up, down, mode)(x, rows)
    assert y.dtype == dtype
    parts = []
    for expert, part in enumerate(x.double().split(list(rows))):
        gate, up = (part @ gate_up[expert].double().T).chunk(2, -1)
        parts.append((gate * gate.sigmoid() * up) @ down[expert].double().T)
    close(y, torch.cat(parts))


def test_grouped_ffn_refuses_counts_that_do_not_add_up() -> None:
    ffn = GroupedFfn(torch.zeros(2, 8, 4), torch.zeros(2, 4, 4), ComputeMode())
    with pytest.raises(ValueError, match="counts 2 rows of 2 experts; given are 3 rows and 2 experts"):
        ffn(torch.zeros(3, 4), [1, 1])
    with pytest.raises(ValueError, match="of 1 experts"):
        ffn(torch.zeros(3, 4), [3])


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
    from expertmesh.kernels.attention import mla_paged_attention

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
