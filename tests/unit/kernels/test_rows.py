"""Rows moved, grouped and summed: compiled and plain torch agree with indexing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.combine import weighted_sum, weighted_sum_torch
from expertmesh.kernels.linear import HeadProduct
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm
from expertmesh.kernels.rope import apply_rope
from expertmesh.kernels.rows import gather_rows, group_rows, scatter_rows


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    """Standard normal values, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("rows", [[], [3], [0, 0, 6, 2]])
def test_gather(dtype: torch.dtype, rows: list[int]) -> None:
    wide = randn(7, 50, dtype=dtype)
    index = torch.tensor(rows, dtype=torch.int64)
    for table in (wide, wide[:, 3:20]):
        assert torch.equal(gather_rows(table, index), table[index])


@pytest.mark.parametrize("rows", [[], [3], [5, 0, 6, 2]])
def test_scatter(dtype: torch.dtype, rows: list[int]) -> None:
    index = torch.tensor(rows, dtype=torch.int64)
    values = randn(len(rows), 40, dtype=dtype)[:, :17]
    expected, target = torch.zeros(7, 17, dtype=dtype), torch.zeros(7, 17, dtype=dtype)
    expected[index] = values
    scatter_rows(target, index, values)
    assert torch.equal(target, expected)


@pytest.mark.parametrize("bad", [-1, 7, 1 << 40])
def test_an_index_outside_is_refused_and_nothing_is_written(dtype: torch.dtype, bad: int) -> None:
    table, index = torch.zeros(7, 4, dtype=dtype), torch.tensor([1, bad])
    with pytest.raises(IndexError):
        gather_rows(table, torch.tensor([1, abs(bad) + 7]))
    with pytest.raises(IndexError):
        scatter_rows(table, index, torch.ones(2, 4, dtype=dtype))
    assert not table.any()
    with pytest.raises(IndexError):
        scatter_rows(table, index, torch.ones(3, 4, dtype=dtype))


def test_rows_are_grouped_in_their_order() -> None:
    order, counts = group_rows(torch.tensor([2, 0, 2, 4, 0, 2]), 6)
    assert order.tolist() == [1, 4, 0, 2, 5, 3]
    assert counts == [2, 0, 3, 0, 1, 0]
    empty, none = group_rows(torch.tensor([], dtype=torch.int64), 3)
    assert empty.tolist() == []
    assert none == [0, 0, 0]


@pytest.mark.parametrize("key", [-1, 3])
def test_a_key_outside_is_refused(key: int) -> None:
    with pytest.raises(IndexError):
        group_rows(torch.tensor([0, key]), 3)


@pytest.mark.parametrize("total", [weighted_sum, weighted_sum_torch])
@pytest.mark.parametrize(("n_tokens", "top_k", "hidden"), [(0, 4, 8), (1, 1, 5), (9, 4, 33), (40, 8, 256)])
def test_weighted_sum(
    dtype: torch.dtype, total: Callable[[Tensor, Tensor], Tensor], n_tokens: int, top_k: int, hidden: int
) -> None:
    y, weights = randn(n_tokens, top_k, hidden, dtype=dtype), randn(n_tokens, top_k, dtype=torch.float32)
    result = total(y, weights)
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result.double(), (y.double() * weights.double()[..., None]).sum(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("native", [True, False])
def test_results_go_where_they_are_wanted(dtype: torch.dtype, native: bool) -> None:
    buffer = torch.zeros(5, 3, 60, dtype=dtype)
    latent, key, rest = buffer.split((40, 16, 4), dim=2)
    product = HeadProduct(randn(3, 24, 40, dtype=dtype), ComputeMode(native=native))
    x = randn(5, 3, 24, dtype=dtype)
    assert product(x, out=latent) is latent
    assert torch.equal(latent, product(x))
    angles = randn(5, 8, dtype=torch.float32)
    turned = randn(5, 3, 16, dtype=dtype)
    apply_rope(turned, angles.cos(), angles.sin(), True, out=key)
    assert torch.equal(key, apply_rope(turned, angles.cos(), angles.sin(), True))
    assert not rest.any()
    rows = torch.zeros(5, 50, dtype=dtype)
    hidden, weight = randn(5, 40, dtype=dtype), randn(40, dtype=dtype)
    rms_norm(hidden, weight, 1e-6, out=rows[:, :40])
    assert torch.equal(rows[:, :40], rms_norm(hidden, weight, 1e-6))
    assert not rows[:, 40:].any()
