"""Tables of rotary angles, with YaRN's stretched frequencies (arXiv:2309.00071).

Shape suffixes: T tokens, P positions, R2 half the rotary features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expertmesh.models.spec import RopeSpec


class RopeTable:
    """cos and sin (fp32) of every position's angles."""

    def __init__(self, spec: RopeSpec, *, max_tokens: int, device: torch.device) -> None:
        angles_PR2 = torch.outer(torch.arange(max_tokens, dtype=torch.float32), inverse_frequencies(spec))
        self._cos_PR2 = (angles_PR2.cos() * spec.cos_sin_scale).to(device)
        self._sin_PR2 = (angles_PR2.sin() * spec.cos_sin_scale).to(device)

    def at(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at some positions, [T, R2] each."""
        return self._cos_PR2[positions_T], self._sin_PR2[positions_T]


def inverse_frequencies(spec: RopeSpec) -> Tensor:
    """Radians a position for each pair of features, fp32 [R2]."""
    periods_R2 = spec.theta ** (torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim)
    plain_R2 = 1.0 / periods_R2
    if spec.factor <= 1:
        return plain_R2
    stretched_R2 = 1.0 / (spec.factor * periods_R2)
    low = max(math.floor(_turning_dim(spec, spec.beta_fast)), 0)
    high = min(math.ceil(_turning_dim(spec, spec.beta_slow)), spec.dim - 1)
    # The published code's way to keep equal borders from a division by zero.
    width = high - low if high != low else 0.001
    ramp_R2 = ((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    plain_share_R2 = 1 - ramp_R2
    return stretched_R2 * (1 - plain_share_R2) + plain_R2 * plain_share_R2


def _turning_dim(spec: RopeSpec, rotations: float) -> float:
    """The pair of features that turns `rotations` times over the original context."""
    turns = spec.original_max_tokens / (rotations * 2 * math.pi)
    return spec.dim * math.log(turns) / (2 * math.log(spec.theta))
