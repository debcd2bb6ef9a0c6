"""Who holds what in a generation, as frozen values: importable without a GPU or a process group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The ranks of one generation, routers first: [R0..Rm-1, E0..En-1], and where the experts are.

    Args:
        n_routers: m.
        slots: for every MoE layer and expert host, the logical expert of each slot.
        members: a name for every rank, for error messages.
        n_draft_layers: how many of the last MoE layers are the drafter's.
    """

    generation: int
    n_routers: int
    slots: tuple[tuple[tuple[int, ...], ...], ...]
    members: tuple[str, ...]
    n_draft_layers: int = 0

    @property
    def n_hosts(self) -> int:
        """Expert hosts; 0 in the fused mode."""
        return len(self.members) - self.n_routers

    @property
    def n_ranks(self) -> int:
        """Routers and expert hosts."""
        return len(self.members)

    @property
    def slots_per_host(self) -> int:
        """The most slots that any host has in any layer."""
        return max((len(s) for layer in self.slots for s in layer), default=0)

    def copies(self, moe_layer: int, n_experts: int) -> list[list[int]]:
        """For each logical expert the physical ids, host * slots_per_host + slot, of its copies.

        Raises:
            ValueError: an expert has no slot.
        """
        per_host = self.slots_per_host
        table: list[list[int]] = [[] for _ in range(n_experts)]
        for host, experts in enumerate(self.slots[moe_layer]):
            for slot, expert in enumerate(experts):
                table[expert].append(host * per_host + slot)
        missing = [expert for expert, copies in enumerate(table) if not copies]
        if missing:
            raise ValueError(f"MoE layer {moe_layer}: experts {missing} have no slot")
        return table
