"""Dense products: a linear layer, and one small product a head.

Shape suffixes: T tokens, K in-features, N out-features, H heads, I and O a head's in- and
out-features, M rows of a tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.tiles import row_tiles


class Linear:
    """y = x W^T + b with weights that stay where they are for the process's life."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, mode: ComputeMode) -> None:
        self._weight_NK = weight_NK
        self._bias_N = bias_N
        self._mode = mode

    def __call__(self, x_TK: Tensor) -> Tensor:
        """`x_TK` (the weight's dtype, any T including 0) to y [T, N] of the same dtype."""
        return tiled_linear(x_TK, self._weight_NK, self._bias_N, self._mode)


def tiled_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, mode: ComputeMode) -> Tensor:
    """`F.linear`, in deterministic mode on exactly `mode.tile_rows` rows at a time."""
    tile_rows = mode.tile_rows
    n_rows = x_TK.shape[0]
    if tile_rows is None or n_rows == 0:
        return F.linear(x_TK, weight_NK, bias_N)
    tiles = [F.linear(tile_MK, weight_NK, bias_N) for tile_MK in row_tiles(x_TK, tile_rows)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles))[:n_rows]


def head_product(x_THI: Tensor, w_HIO: Tensor, mode: ComputeMode) -> Tensor:
    """Every head's rows times that head's matrix: y [T, H, O] of x's dtype."""
    tile_rows = mode.tile_rows
    n_rows = x_THI.shape[0]
    if tile_rows is None or n_rows == 0:
        return torch.bmm(x_THI.transpose(0, 1), w_HIO).transpose(0, 1)
    tiles = [
        torch.bmm(tile_MHI.transpose(0, 1).contiguous(), w_HIO).transpose(0, 1)
        for tile_MHI in row_tiles(x_THI, tile_rows)
    ]
    return torch.cat(tiles)[:n_rows]
