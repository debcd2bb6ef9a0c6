"""Dense products: a linear layer, and one small product a head.

Shape suffixes: T tokens, K in-features, N out-features, H heads, I and O a head's in- and
out-features, M rows of a tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.ops import native_ops
from expertmesh.kernels.tiles import row_tiles


class Linear:
    """y = x W^T + b with weights that stay where they are for the process's life.

    On CPUs the weights are copied into the order in which the compiled kernels read them; the tensor
    that was given is not kept then.
    """

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, mode: ComputeMode) -> None:
        self._ops = native_ops(weight_NK) if mode.native else None
        self._weight_NK = weight_NK if self._ops is None else None
        self._packed = None if self._ops is None else self._ops.pack([weight_NK])
        self._bias_N = None if bias_N is None else bias_N.contiguous()
        self._mode = mode

    def __call__(self, x_TK: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """`x_TK` (the weight's dtype, any T including 0) to y [T, N] of `out_dtype`, x's when absent.

        Sums are fp32; with fp32 as `out_dtype` the compiled kernels do not round them to bf16.
        """
        out_dtype = out_dtype or x_TK.dtype
        if self._ops is not None and self._packed is not None:
            rows_TK = x_TK if x_TK.stride(-1) == 1 else x_TK.contiguous()
            return self._ops.linear(rows_TK, self._packed, self._bias_N, out_dtype)
        assert self._weight_NK is not None
        return tiled_linear(x_TK, self._weight_NK, self._bias_N, self._mode).to(out_dtype)


class HeadProduct:
    """Every head's rows times that head's matrix, with weights that stay where they are."""

    def __init__(self, w_HIO: Tensor, mode: ComputeMode) -> None:
        self._ops = native_ops(w_HIO) if mode.native else None
        self._w_HIO = w_HIO.contiguous() if self._ops is None else None
        self._packed = None if self._ops is None else self._ops.pack(list(w_HIO.transpose(1, 2)))
        self._mode = mode

    def __call__(self, x_THI: Tensor, out: Tensor | None = None) -> Tensor:
        """y [T, H, O] of x's dtype; `out`, when given, takes it and is returned."""
        if self._ops is not None and self._packed is not None:
            rows_THI = x_THI if x_THI.stride(-1) == 1 else x_THI.contiguous()
            if out is None:
                out = x_THI.new_empty((*x_THI.shape[:2], self._packed.n))
            return self._ops.head_product(rows_THI, self._packed, out)
        assert self._w_HIO is not None
        y_THO = head_product(x_THI, self._w_HIO, self._mode)
        return y_THO if out is None else out.copy_(y_THO)


def tiled_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, mode: ComputeMode) -> Tensor:
    """`F.linear`, in deterministic mode on exactly `mode.tile_rows` rows at a time."""
    tile_rows = mode.tile_rows
    n_rows = x_TK.shape[0]
    if tile_rows is None or n_rows == 0:
        return F.linear(x_TK, weight_NK, bias_N)
    tiles = [F.linear(tile_MK, weight_NK, bias_N) for tile_MK in row_tiles(x_TK, tile_rows)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles))[:n_rows]


def head_product(x_THI: Tensor, w_HIO: Tensor, mode: ComputeMode) -> Tensor:
    """`HeadProduct` with weights as they are, in plain torch: y [T, H, O] of x's dtype."""
    tile_rows = mode.tile_rows
    n_rows = x_THI.shape[0]
    if tile_rows is None or n_rows == 0:
        return torch.bmm(x_THI.transpose(0, 1), w_HIO).transpose(0, 1)
    tiles = [
        torch.bmm(tile_MHI.transpose(0, 1).contiguous(), w_HIO).transpose(0, 1)
        for tile_MHI in row_tiles(x_THI, tile_rows)
    ]
    return torch.cat(tiles)[:n_rows]
