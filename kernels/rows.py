"""Rows moved by index and grouped by key.

Shape suffixes: N rows of a table, R rows moved, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expertmesh.kernels.native.ops import native_ops, native_row_ops


def gather_rows(x_ND: Tensor, index_R: Tensor) -> Tensor:
    """x[index], [R, D]. Raises IndexError for an index outside of x (`index_R` is int64)."""
    ops = native_ops(x_ND)
    if ops is not None and x_ND.stride(-1) == 1 and index_R.is_contiguous():
        return ops.gather_rows(x_ND, index_R)
    return x_ND[index_R]


def scatter_rows(target_ND: Tensor, index_R: Tensor, rows_RD: Tensor) -> None:
    """target[index] = rows, in place. Indices are int64 and differ; one outside raises IndexError."""
    ops = native_ops(target_ND)
    if (
        ops is not None
        and target_ND.dtype is rows_RD.dtype
        and target_ND.stride(-1) == rows_RD.stride(-1) == 1
        and index_R.is_contiguous()
    ):
        ops.scatter_rows(target_ND, index_R, rows_RD)
    else:
        target_ND.index_copy_(0, index_R, rows_RD)


def group_rows(keys_R: Tensor, n_groups: int) -> tuple[Tensor, list[int]]:
    """Which rows have key 0, then key 1 and so on, each in their order; and how many each key has.

    Keys are int64 and below `n_groups`; another raises IndexError. On other devices the counts are
    read on the host (a device sync).
    """
    ops = native_row_ops(keys_R)
    if ops is not None and keys_R.is_contiguous():
        return ops.group_rows(keys_R, n_groups)
    counts: list[int] = torch.bincount(keys_R, minlength=n_groups).tolist()
    if len(counts) > n_groups:
        raise IndexError(f"a key of {len(counts) - 1} stands among {n_groups} groups")
    return torch.argsort(keys_R, stable=True), counts
