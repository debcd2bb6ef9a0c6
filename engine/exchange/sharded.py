"""The router's side of the exchange with expert hosts.

Shape suffixes: T tokens, K experts a token, D hidden size, R token-expert pairs, B bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.engine.exchange.communicator import Communicator, PendingExchange
from expertmesh.engine.exchange.form import DispatchForm, choose_form
from expertmesh.engine.exchange.header import LayerExchange, StepAgreement
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.replicas import ReplicaChoice
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.kernels.combine import weighted_sum

SCATTER = 0x9E3779B1
"""The upper half of a step's number times this is as good as random (Knuth's multiplicative hash)."""


@dataclass(frozen=True, slots=True)
class ShardedHandle:
    """A dispatch under way; `combine` requires it."""

    moe_layer: int
    host_TK: Tensor
    """The expert host of every token-expert pair."""
    pending: PendingExchange


class ShardedExchange:
    """`models.interface.MoeExchange` over the process group of one generation.

    The two collectives of a layer run in the same order on all ranks; a router without tokens calls
    both with empty tensors.
    """

    def __init__(
        self,
        communicator: Communicator,
        layout: RankLayout,
        rows: RowFormat,
        *,
        n_experts: int,
        n_moe_layers: int,
    ) -> None:
        self._communicator = communicator
        self._layout = layout
        self._slots_per_host = layout.slots_per_host
        self._rows = rows
        self._form: DispatchForm = "capacity"
        self._replicas = ReplicaChoice(layout, n_experts, n_moe_layers, communicator.device)
        self._n_moe_layers = n_moe_layers
        self._due: deque[LayerExchange] = deque()
        """What the step still has to exchange."""
        self._first_copy = 0

    @property
    def generation(self) -> int:
        """The generation's number."""
        return self._layout.generation

    @property
    def n_hosts(self) -> int:
        """Expert hosts."""
        return self._layout.n_hosts

    def begin(self, agreement: StepAgreement) -> None:
        """Takes the step's exchanges and its number from the headers."""
        # Scattered, so that no pattern in the steps' sizes always favours the same copy.
        scattered = (agreement.headers[0].step * SCATTER & 0xFFFFFFFF) >> 16
        self._first_copy = self._communicator.rank + scattered
        self._due = deque(agreement.exchanges(self._n_moe_layers, self._layout.n_draft_layers))

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> ShardedHandle:
        """Sends the tokens off to the hosts of their experts; returns at once."""
        due = self._due.popleft()
        assert due.moe_layer == moe_layer, f"MoE layer {due.moe_layer} is due, not {moe_layer}"
        self._form = choose_form(due.tokens, self._layout.n_hosts, self._rows.top_k, self._rows.row_bytes)
        physical_TK = self._replicas.physical(moe_layer, topk_ids_TK, self._first_copy)
        host_TK = physical_TK // self._slots_per_host
        rows_TB = self._rows.pack(x_TD, physical_TK)
        if self._form == "capacity":
            counts = [len(x_TD)] * self._layout.n_hosts
            sent = rows_TB.reshape(-1).repeat(self._layout.n_hosts)
        else:
            chosen = [(host_TK == host).any(dim=1) for host in range(self._layout.n_hosts)]
            parts = [rows_TB[mask_T] for mask_T in chosen]
            counts = [len(part) for part in parts]
            self._send_counts(counts)
            sent = torch.cat(parts).reshape(-1)
        splits = [0] * self._layout.n_routers + [n * self._rows.row_bytes for n in counts]
        pending = self._communicator.all_to_all(
            sent, splits, [0] * self._layout.n_ranks, f"dispatch of MoE layer {moe_layer}"
        )
        return ShardedHandle(moe_layer, host_TK, pending)

    def combine(self, handle: ShardedHandle, topk_weights_TK: Tensor) -> Tensor:
        """The weighted sum of the hosts' answers, fp32 [T, D]."""
        n_tokens, top_k = handle.host_TK.shape
        host_R = handle.host_TK.reshape(-1)
        # Hosts answer pair by pair in the order of the rows; a stable sort by host gives that order.
        order_R = torch.argsort(host_R, stable=True)
        counts: list[int] = torch.bincount(host_R, minlength=self._layout.n_hosts).tolist()
        splits = [0] * self._layout.n_routers + [n * self._rows.value_bytes for n in counts]
        handle.pending.wait()
        received = self._communicator.all_to_all(
            torch.empty(0, dtype=torch.uint8, device=host_R.device),
            [0] * self._layout.n_ranks,
            splits,
            f"combine of MoE layer {handle.moe_layer}",
        ).wait()
        y_RD = received.view(self._rows.dtype).view(-1, self._rows.hidden)
        sorted_RD = torch.empty_like(y_RD)
        sorted_RD[order_R] = y_RD
        return weighted_sum(sorted_RD.view(n_tokens, top_k, self._rows.hidden), topk_weights_TK)

    def finish(self) -> None:
        """Takes part without tokens in what the step still has to exchange: all of it for a router without
        work, passes of others' drafters for one that wants fewer."""
        if not self._due:
            return
        device = self._communicator.device
        x_TD = torch.empty(0, self._rows.hidden, dtype=self._rows.dtype, device=device)
        ids_TK = torch.empty(0, self._rows.top_k, dtype=torch.int64, device=device)
        weights_TK = torch.empty(0, self._rows.top_k, device=device)
        while self._due:
            self.combine(self.dispatch(self._due[0].moe_layer, x_TD, ids_TK), weights_TK)

    def _send_counts(self, counts: list[int]) -> None:
        layout = self._layout
        self._communicator.all_to_all(
            torch.tensor(counts, dtype=torch.int64).view(torch.uint8).to(self._communicator.device),
            [0] * layout.n_routers + [8] * layout.n_hosts,
            [0] * layout.n_ranks,
            "the dispatch counts",
        ).wait()
