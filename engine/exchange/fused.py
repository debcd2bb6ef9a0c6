"""The exchange of the fused mode: the experts live in the router and nothing travels.

Shape suffixes: T tokens, K experts a token, D hidden size, R token-expert pairs (T * K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from expertmesh.kernels.combine import weighted_sum


class SlotExperts(Protocol):
    """Experts in numbered slots (`models.experts.ExpertBank` is one)."""

    def forward(self, moe_layer: int, x_RD: Tensor, rows_per_slot: list[int]) -> Tensor:
        """Outputs [R, D] for rows that are sorted by slot."""
        ...


@dataclass(frozen=True, slots=True)
class FusedHandle:
    """Expert outputs in top-k order, waiting for their weights."""

    y_TKD: Tensor


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
    order_R = torch.argsort(slots_R, stable=True)
    rows_per_slot: list[int] = torch.bincount(slots_R, minlength=n_slots).tolist()
    sorted_RD = experts.forward(moe_layer, x_TD[tokens_R[order_R]], rows_per_slot)
    y_RD = torch.empty_like(sorted_RD)
    y_RD[order_R] = sorted_RD
    return y_RD


class FusedExchange:
    """`models.interface.MoeExchange` without a process group: slot e holds logical expert e."""

    def __init__(self, experts: SlotExperts, n_experts: int) -> None:
        self._experts = experts
        self._n_experts = n_experts

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> FusedHandle:
        """Computes the chosen experts at once."""
        n_tokens, top_k = topk_ids_TK.shape
        slots_R = topk_ids_TK.reshape(-1)
        tokens_R = torch.arange(slots_R.numel(), device=slots_R.device) // top_k
        y_RD = run_slots(self._experts, moe_layer, x_TD, tokens_R, slots_R, self._n_experts)
        return FusedHandle(y_RD.view(n_tokens, top_k, -1))

    def combine(self, handle: FusedHandle, topk_weights_TK: Tensor) -> Tensor:
        """The weighted sum, fp32 [T, D]."""
        return weighted_sum(handle.y_TKD, topk_weights_TK)
