"""Rows padded to whole tiles, for products that always run on one fixed number of rows.

Shape suffixes: R rows, "..." whatever follows.
"""

from __future__ import annotations

from torch import Tensor


def n_tiles(n_rows: int, tile_rows: int) -> int:
    """Tiles that hold `n_rows`."""
    return -(-n_rows // tile_rows)


def row_tiles(x_R: Tensor, tile_rows: int) -> list[Tensor]:
    """`x_R` [R, ...] in contiguous tiles of exactly `tile_rows` rows, the last one padded with zeros."""
    padded_R = pad_rows(x_R, tile_rows)
    return [padded_R[start : start + tile_rows] for start in range(0, padded_R.shape[0], tile_rows)]


def pad_rows(x_R: Tensor, tile_rows: int) -> Tensor:
    """`x_R` [R, ...], contiguous, with zero rows behind it up to a multiple of `tile_rows`."""
    n_rows = x_R.shape[0]
    n_padded = n_tiles(n_rows, tile_rows) * tile_rows
    if n_padded == n_rows:
        return x_R.contiguous()
    padded_R = x_R.new_zeros(n_padded, *x_R.shape[1:])
    padded_R[:n_rows] = x_R
    return padded_R
