"""The expert host's side of the exchange: receive rows, run the experts, send the answers back.

Shape suffixes: T rows received, K experts a token, D hidden size, R token-expert pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.form import choose_form
from expertmesh.engine.exchange.header import LayerExchange, StepAgreement
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.exchange.slots import SlotExperts, run_slots


class HostExchange:
    """One expert host in one generation.

    Args:
        banks: the experts of its slots, for every version of the weights that the generation holds.
        mark: attributes time to parts of the step.
    """

    def __init__(
        self,
        communicator: Communicator,
        layout: RankLayout,
        rows: RowFormat,
        banks: Sequence[SlotExperts],
        mark: Callable[[str], None] = lambda part: None,
    ) -> None:
        self._communicator = communicator
        self._layout = layout
        self._rows = rows
        self._banks = tuple(banks)
        self._experts = self._banks[-1]
        self._mark = mark
        self.due: list[LayerExchange] = []
        """What the step exchanges, in order."""
        host = communicator.rank - layout.n_routers
        self._first_slot = host * layout.slots_per_host
        self._n_slots = [len(layer[host]) for layer in layout.slots]

    @property
    def n_versions(self) -> int:
        """Versions of the weights."""
        return len(self._banks)

    def begin(self, agreement: StepAgreement, turn: int = 0) -> None:
        """Takes the step's exchanges from the headers; it computes with version `turn` of the weights."""
        self._experts = self._banks[turn]
        self.due = agreement.exchanges(len(self._layout.slots), self._layout.n_draft_layers)

    def serve(self, due: LayerExchange) -> int:
        """Takes part in one of the step's exchanges; returns the token-expert pairs that it computed."""
        layout, moe_layer = self._layout, due.moe_layer
        form = choose_form(due.tokens, layout.n_hosts, self._rows.top_k, self._rows.row_bytes)
        counts = self._receive_counts() if form == "exact" else list(due.tokens[: layout.n_routers])
        splits = [n * self._rows.row_bytes for n in counts] + [0] * layout.n_hosts
        nothing = torch.empty(0, dtype=torch.uint8, device=self._communicator.device)
        none = [0] * layout.n_ranks
        received = self._communicator.all_to_all(
            nothing, none, splits, f"dispatch of MoE layer {moe_layer}"
        ).wait()
        self._mark("dispatch")
        y_RD, pairs = self._compute(moe_layer, received, counts)
        self._mark("experts")
        answer_splits = [n * self._rows.value_bytes for n in pairs] + [0] * layout.n_hosts
        self._communicator.all_to_all(
            y_RD.reshape(-1).view(torch.uint8),
            answer_splits,
            none,
            f"combine of MoE layer {moe_layer}",
        ).wait()
        self._mark("combine")
        return sum(pairs)

    def _compute(self, moe_layer: int, received: Tensor, counts: list[int]) -> tuple[Tensor, list[int]]:
        """Outputs [R, D] of this host's pairs in the order of the rows, and pairs for each router."""
        x_TD, physical_TK = self._rows.unpack(received)
        n_slots = self._n_slots[moe_layer]
        slot_TK = physical_TK.to(torch.int64) - self._first_slot
        mine_TK = (slot_TK >= 0) & (slot_TK < n_slots)
        # Row-major: the pairs of one router follow each other, as its rows do.
        tokens_R, which_R = mine_TK.nonzero(as_tuple=True)
        pairs_T = mine_TK.sum(dim=1).cumsum(0)
        ends = [0, *torch.tensor(counts).cumsum(0).tolist()]
        upto = [0, *pairs_T.tolist()]
        pairs = [upto[stop] - upto[start] for start, stop in pairwise(ends)]
        y_RD = run_slots(self._experts, moe_layer, x_TD, tokens_R, slot_TK[tokens_R, which_R], n_slots)
        return y_RD, pairs

    def _receive_counts(self) -> list[int]:
        layout = self._layout
        device = self._communicator.device
        received = self._communicator.all_to_all(
            torch.empty(0, dtype=torch.uint8, device=device),
            [0] * layout.n_ranks,
            [8] * layout.n_routers + [0] * layout.n_hosts,
            "the dispatch counts",
        ).wait()
        counts: list[int] = received.view(torch.int64).tolist()
        return counts
