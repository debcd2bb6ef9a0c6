"""Counts which logical experts tokens choose, without a host-device sync in the hot path.

Shape suffixes: T tokens, K experts a token, D hidden size, L MoE layers, E logical experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expertmesh.models.interface import MoeExchange


class RoutingCounter:
    """Rows for each MoE layer and logical expert since the start; an interrupted step does not count."""

    def __init__(self, n_moe_layers: int, n_experts: int, device: torch.device) -> None:
        shape = (n_moe_layers, n_experts)
        self._rows_LE = torch.zeros(shape, dtype=torch.int64, device=device)
        self._chosen: list[tuple[int, Tensor]] = []

    def watch(self, exchange: MoeExchange) -> MoeExchange:
        """The same exchange for one step, noting what is dispatched."""
        self._chosen = []
        return _Watched(exchange, self._chosen)

    def commit(self) -> None:
        """Counts what the step dispatched."""
        for layer, ids_TK in self._chosen:
            ids = ids_TK.reshape(-1)
            self._rows_LE[layer].index_add_(0, ids, torch.ones_like(ids))
        self._chosen = []

    def rows(self) -> list[int]:
        """The counts, flattened [layer, expert]. Syncs with the device."""
        counts: list[int] = self._rows_LE.reshape(-1).tolist()
        return counts


class _Watched:
    def __init__(self, exchange: MoeExchange, chosen: list[tuple[int, Tensor]]) -> None:
        self._exchange = exchange
        self._chosen = chosen
        self.combine = exchange.combine

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> Any:
        self._chosen.append((moe_layer, topk_ids_TK))
        return self._exchange.dispatch(moe_layer, x_TD, topk_ids_TK)
