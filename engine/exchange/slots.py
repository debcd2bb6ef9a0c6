"""Running token-expert pairs through the experts of one process.

Shape suffixes: T tokens, D hidden size, R token-expert pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from expertmesh.kernels.rows import gather_rows, group_rows, scatter_rows


class SlotExperts(Protocol):
    """Experts in numbered slots (`models.experts.ExpertBank` is one)."""

    def forward(self, moe_layer: int, x_RD: Tensor, rows_per_slot: Sequence[int]) -> Tensor:
        """Outputs [R, D] for rows that are sorted by slot."""
        ...


def run_slots(
    experts: SlotExperts,
    moe_layer: int,
    x_TD: Tensor,
    tokens_R: Tensor,
    slots_R: Tensor,
    n_slots: int,
) -> Tensor:
    """Runs token-expert pairs through their slots: sorts by slot, computes, restores the order.

    Pair r is row `tokens_R[r]` of `x_TD` in slot `slots_R[r]` (both int64). Returns [R, D] in the
    order of the pairs. The sort is stable, so that the rows of one slot keep their order. Reads the
    row counts on the host (a device sync).
    """
    order_R, rows_per_slot = group_rows(slots_R, n_slots)
    sorted_RD = experts.forward(moe_layer, gather_rows(x_TD, tokens_R[order_R]), rows_per_slot)
    y_RD = torch.empty_like(sorted_RD)
    scatter_rows(y_RD, order_R, sorted_RD)
    return y_RD
