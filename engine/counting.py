"""Counts which experts tokens choose and which hosts they go to, with no host-device sync in the hot path.

Shape suffixes: T tokens, K experts a token, D hidden size, L MoE layers, E logical experts, H expert
hosts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expertmesh.engine.exchange.sharded import ShardedExchange, ShardedHandle
from expertmesh.models.interface import MoeExchange


class RoutingCounter:
    """Rows of each MoE layer, by logical expert since the start and by expert host since the generation's
    first step. An interrupted step does not count.
    """

    def __init__(self, n_moe_layers: int, n_experts: int, device: torch.device) -> None:
        self._n_moe_layers = n_moe_layers
        self._device = device
        self._by_expert = _Rows(n_moe_layers, n_experts, device)
        self._by_host: tuple[int, _Rows] | None = None
        """The last generation with expert hosts that a step was watched in, and its rows."""

    def watch(self, exchange: MoeExchange) -> MoeExchange:
        """The same exchange for one step, noting what is dispatched."""
        self._by_expert.drop()
        by_host = None
        if isinstance(exchange, ShardedExchange):
            if self._by_host is None or self._by_host[0] != exchange.generation:
                rows = _Rows(self._n_moe_layers, exchange.n_hosts, self._device)
                self._by_host = (exchange.generation, rows)
            by_host = self._by_host[1]
            by_host.drop()
        return _Watched(exchange, self._by_expert, by_host)

    def commit(self) -> None:
        """Counts what the step dispatched."""
        self._by_expert.commit()
        if self._by_host is not None:
            self._by_host[1].commit()

    def rows(self) -> list[int]:
        """Rows since the start, flattened [layer, expert]. Syncs with the device."""
        return self._by_expert.totals()

    def host_rows(self) -> tuple[int, list[int]]:
        """A generation's number and its rows, flattened [layer, host]; (0, []) before there is one with
        expert hosts. Syncs with the device. Callable from another thread, as `rows` is.
        """
        by_host = self._by_host
        return (0, []) if by_host is None else (by_host[0], by_host[1].totals())


class _Rows:
    """Totals by MoE layer and key, and what the step in progress will add to them."""

    def __init__(self, n_moe_layers: int, n_keys: int, device: torch.device) -> None:
        self._n_keys = n_keys
        self._totals = torch.zeros(n_moe_layers * n_keys, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.int64, device=device)
        self._noted: list[tuple[int, Tensor]] = []

    def note(self, moe_layer: int, keys_TK: Tensor) -> None:
        self._noted.append((moe_layer, keys_TK))

    def drop(self) -> None:
        self._noted = []

    def commit(self) -> None:
        if self._noted:
            firsts = torch.tensor([layer * self._n_keys for layer, _ in self._noted])
            sizes = torch.tensor([keys_TK.numel() for _, keys_TK in self._noted])
            offsets = torch.repeat_interleave(firsts, sizes).to(self._totals.device)
            keys = torch.cat([keys_TK.reshape(-1) for _, keys_TK in self._noted]) + offsets
            self._totals.scatter_add_(0, keys, self._one.expand_as(keys))
            self._noted = []

    def totals(self) -> list[int]:
        counts: list[int] = self._totals.tolist()
        return counts


class _Watched:
    def __init__(self, exchange: MoeExchange, by_expert: _Rows, by_host: _Rows | None) -> None:
        self._exchange = exchange
        self._by_expert = by_expert
        self._by_host = by_host
        self.combine = exchange.combine

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> Any:
        handle = self._exchange.dispatch(moe_layer, x_TD, topk_ids_TK)
        self._by_expert.note(moe_layer, topk_ids_TK)
        if self._by_host is not None and isinstance(handle, ShardedHandle):
            self._by_host.note(moe_layer, handle.host_TK)
        return handle
