"""The order in which the C kernels read weights.

Shape suffixes: N out-features, K in-features, D hidden size, F hidden features, G = 2F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 16
LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Weights [N, K], or a stack of them, in the order in which the kernels read them."""

    storage: Tensor
    n: int
    k: int
    is_bf16: bool


def interleave_gate_up(gate_up_GD: Tensor) -> Tensor:
    """Rows of gate and up [2F, D] in turns of 16, F padded to a multiple of 16 with zeros.

    A product's block of columns then holds gate and up of the same features.
    """
    n_features, hidden = gate_up_GD.shape[0] // 2, gate_up_GD.shape[1]
    n_panels = -(-n_features // LANES)
    padded = gate_up_GD.new_zeros(2, n_panels * LANES, hidden)
    padded[:, :n_features] = gate_up_GD.view(2, n_features, hidden)
    return padded.view(2, n_panels, LANES, hidden).transpose(0, 1).reshape(-1, hidden)


def packed_bytes(n: int, k: int, is_bf16: bool) -> int:
    """Bytes of a packed [N, K]: N is padded to 16, for bf16 K to 32."""
    lines = -(-k // 32) * 16 if is_bf16 else k
    return -(-n // LANES) * lines * LINE_BYTES


def aligned_zeros(n_bytes: int) -> Tensor:
    """Zeroed bytes that start on a line."""
    storage = torch.zeros(n_bytes + LINE_BYTES, dtype=torch.uint8)
    offset = -storage.data_ptr() % LINE_BYTES
    return storage[offset : offset + n_bytes]
