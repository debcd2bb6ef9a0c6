"""The exchange of the fused mode: the experts live in the router and nothing travels.

Shape suffixes: T tokens, K experts a token, D hidden size, R token-expert pairs (T * K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.engine.exchange.slots import SlotExperts, run_slots
from expertmesh.kernels.combine import weighted_sum


@dataclass(frozen=True, slots=True)
class FusedHandle:
    """Expert outputs in top-k order, waiting for their weights."""

    y_TKD: Tensor


class FusedExchange:
    """`models.interface.MoeExchange` without a process group: slot e holds logical expert e.

    `mark` attributes time to parts of the step.
    """

    def __init__(
        self, experts: SlotExperts, n_experts: int, mark: Callable[[str], None] = lambda part: None
    ) -> None:
        self._experts = experts
        self._n_experts = n_experts
        self._mark = mark

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> FusedHandle:
        """Computes the chosen experts at once."""
        n_tokens, top_k = topk_ids_TK.shape
        slots_R = topk_ids_TK.reshape(-1)
        tokens_R = torch.arange(slots_R.numel(), device=slots_R.device) // top_k
        y_RD = run_slots(self._experts, moe_layer, x_TD, tokens_R, slots_R, self._n_experts)
        self._mark("experts")
        return FusedHandle(y_RD.view(n_tokens, top_k, x_TD.shape[1]))

    def combine(self, handle: FusedHandle, topk_weights_TK: Tensor) -> Tensor:
        """The weighted sum, fp32 [T, D]."""
        return weighted_sum(handle.y_TKD, topk_weights_TK)
