"""The load figures that members report, added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh.cluster.types import Generation


@dataclass(frozen=True, slots=True)
class Load:
    """One member's figures."""

    tokens: int = 0
    """Computed (router) or token-expert rows served (expert host) since its start."""
    expert_rows: tuple[int, ...] = ()
    """Routers: rows for each MoE layer and logical expert, flattened [layer, expert], since its start."""
    outstanding_requests: int = 0
    """Gateways: requests admitted and not finished, now."""
    decode_steps: int = 0
    """Decode steps that `decode_part_ms` adds up, since its start."""
    decode_part_ms: Mapping[str, float] = field(default_factory=dict)
    cache_blocks: int = 0
    """Routers: blocks of the paged cache."""
    cache_blocks_used: int = 0
    """Routers: those that sequences hold, now."""
    loaded_bytes: int = 0
    """Of the weights that are being loaded; `total_bytes` once they are there."""
    total_bytes: int = 0
    host_rows_generation: int = 0
    """Routers: the generation of `host_rows`; 0 is none."""
    host_rows: tuple[int, ...] = ()
    """Routers: rows for each MoE layer and expert host, flattened [layer, host], since that generation's
    first step."""
    running_requests: int = 0
    """Routers: requests that are being computed, now."""
    queued_requests: int = 0
    """Routers: requests that wait for their first step, now."""
    queued_tokens: int = 0
    """Routers: tokens of prompts that are still to be computed, now."""
    busy_s: float = 0.0
    """Seconds spent on steps, waits for other ranks apart, since its start."""


class LoadTable:
    """The latest figures of every connected member."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def report(self, incarnation: str, load: Load) -> None:
        """Replaces a member's figures."""
        self._loads[incarnation] = load

    def forget(self, incarnation: str) -> None:
        """The member is gone."""
        self._loads.pop(incarnation, None)

    def members(self, generation: Generation) -> list[Load]:
        """The figures of every member, in rank order."""
        return [self._loads.get(m.incarnation, Load()) for m in generation.members]

    def expert_rows(self, generation: Generation) -> list[int]:
        """Rows for each MoE layer and logical expert, flattened, summed over the routers."""
        rows = [self._loads.get(m.incarnation, Load()).expert_rows for m in generation.routers]
        n = max((len(r) for r in rows), default=0)
        return [sum(column) for column in zip(*(r for r in rows if len(r) == n), strict=True)]

    @property
    def outstanding_requests(self) -> int:
        """Requests admitted and not finished, over all gateways."""
        return sum(load.outstanding_requests for load in self._loads.values())

    @property
    def loading(self) -> tuple[int, int]:
        """(loaded, all) bytes of the weights that members load."""
        loads = self._loads.values()
        return sum(load.loaded_bytes for load in loads), sum(load.total_bytes for load in loads)
