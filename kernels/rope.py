"""Rotary position embedding (arXiv:2104.09864).

Shape suffixes: T tokens, H heads, R rotary features, R2 = R / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expertmesh.kernels.native.ops import native_ops


def apply_rope(
    x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, interleaved: bool, out: Tensor | None = None
) -> Tensor:
    """Rotates each pair of features by its position's angle; same shape and dtype, fp32 inside.

    Pairs are neighbours (2i, 2i + 1) when `interleaved`, else (i, i + R/2); results stand where the
    inputs stood. `out` [T, H, R] of x's dtype, when given, takes the result and is returned.
    """
    ops = native_ops(x_THR)
    if (
        ops is not None
        and cos_TR2.dtype is sin_TR2.dtype is torch.float32
        and (strides := cos_TR2.stride()) == sin_TR2.stride()
        and strides[-1] == x_THR.stride(-1) == 1
    ):
        if out is None:
            out = torch.empty_like(x_THR, memory_format=torch.contiguous_format)
        return ops.rope(x_THR, cos_TR2, sin_TR2, interleaved, out)
    y_THR = apply_rope_torch(x_THR, cos_TR2, sin_TR2, interleaved)
    return y_THR if out is None else out.copy_(y_THR)


def apply_rope_torch(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, interleaved: bool) -> Tensor:
    """`apply_rope` on any device."""
    cos_T1R2, sin_T1R2 = cos_TR2.float().unsqueeze(1), sin_TR2.float().unsqueeze(1)
    x32_THR = x_THR.float()
    if interleaved:
        pairs = x32_THR.reshape(*x_THR.shape[:-1], x_THR.shape[-1] // 2, 2)
        a_THR2, b_THR2 = pairs[..., 0], pairs[..., 1]
    else:
        a_THR2, b_THR2 = x32_THR.chunk(2, -1)
    rotated_a_THR2 = a_THR2 * cos_T1R2 - b_THR2 * sin_T1R2
    rotated_b_THR2 = b_THR2 * cos_T1R2 + a_THR2 * sin_T1R2
    if interleaved:
        rotated_THR = torch.stack((rotated_a_THR2, rotated_b_THR2), -1).flatten(-2)
    else:
        rotated_THR = torch.cat((rotated_a_THR2, rotated_b_THR2), -1)
    return rotated_THR.to(x_THR.dtype)
