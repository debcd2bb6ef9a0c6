"""The load figures that members report, added up, and what was routed lately.

Figures by MoE layer and by logical expert or expert host come flattened, layer after layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import add, gt, sub

from expertmesh.cluster.types import Generation

N_SNAPSHOTS = 20
"""Totals that a window remembers at most."""


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
    oldest_weights: int = 0
    """Routers and gateways: the oldest version of the weights that an unfinished request began with; 0 is
    none."""
    newest_weights: int = 0
    """Gateways: the version that new requests begin with; 0 while it was told of none."""
    draft_tokens: int = 0
    """Routers: drafts that were verified, since its start."""
    accepted_tokens: int = 0
    """Routers: those of them that were accepted."""


class LoadTable:
    """The latest figures of every connected member, and the rows that routers routed within a window.

    The window ends with the last report that told of rows: a deployment at rest keeps its last one. Time is
    passed in.

    Args:
        n_experts: routed experts of each MoE layer.
        window_s: how far back the window reaches, to within a twentieth of it.
    """

    def __init__(self, *, n_experts: int = 0, window_s: float = 60.0) -> None:
        self._n_experts = n_experts
        self._window_s = window_s
        self._loads: dict[str, Load] = {}
        self._experts = _Window(window_s)
        self._hosts = _Window(window_s)
        self._hosts_generation = 0

    def report(self, incarnation: str, load: Load, now_s: float) -> None:
        """Replaces a member's figures.

        What a member has counted before its first report here is no part of the window: a coordinator that
        has just started cannot tell when that was.
        """
        before = self._loads.get(incarnation)
        self._loads[incarnation] = load
        if before is None:
            return
        self._experts.add(_grown(before.expert_rows, load.expert_rows), now_s)
        if load.host_rows_generation > self._hosts_generation:
            self._hosts = _Window(self._window_s)
            self._hosts_generation = load.host_rows_generation
        if load.host_rows_generation == self._hosts_generation:
            same = before.host_rows_generation == load.host_rows_generation
            self._hosts.add(_grown(before.host_rows if same else (), load.host_rows), now_s)

    def forget(self, incarnation: str) -> None:
        """The member is gone; what it routed stays in the window."""
        self._loads.pop(incarnation, None)

    def reset_window(self) -> None:
        """The window begins anew."""
        self._experts = _Window(self._window_s)
        self._hosts = _Window(self._window_s)

    @property
    def loads(self) -> Mapping[str, Load]:
        """The latest figures by incarnation."""
        return dict(self._loads)

    def members(self, generation: Generation) -> list[Load]:
        """The figures of every member, in rank order."""
        return [self._loads.get(m.incarnation, Load()) for m in generation.members]

    def expert_rows(self, generation: Generation) -> list[int]:
        """Rows for each MoE layer and logical expert, flattened, summed over the routers."""
        rows = [self._loads.get(m.incarnation, Load()).expert_rows for m in generation.routers]
        n = max((len(r) for r in rows), default=0)
        return [sum(column) for column in zip(*(r for r in rows if len(r) == n), strict=True)]

    def window_expert_rows(self) -> list[list[int]] | None:
        """Rows [layer][logical expert] within the window, over all routers; None when there are none."""
        rows, n = self._experts.rows(), self._n_experts
        if n == 0 or not any(rows):
            return None
        return [rows[first : first + n] for first in range(0, len(rows), n)]

    @property
    def window_rows(self) -> int:
        """Rows of one MoE layer within the window; every layer has as many."""
        return sum(self._experts.rows()[: self._n_experts])

    def window_host_rows(self, generation: Generation) -> list[int]:
        """Rows for each MoE layer and expert host, flattened, within the window and since the generation
        began; empty when its routers have told of none."""
        return self._hosts.rows() if generation.number == self._hosts_generation else []

    def imbalance(self, generation: Generation) -> float:
        """The most loaded host's rows over the mean, all layers together, within the window and since the
        generation began; 0 when nothing was routed."""
        rows = self.window_host_rows(generation)
        n_hosts = generation.n_experts
        if n_hosts == 0 or not any(rows):
            return 0.0
        return max(sum(rows[host::n_hosts]) for host in range(n_hosts)) * n_hosts / sum(rows)

    @property
    def outstanding_requests(self) -> int:
        """Requests admitted and not finished, over all gateways."""
        return sum(load.outstanding_requests for load in self._loads.values())

    @property
    def loading(self) -> tuple[int, int]:
        """(loaded, all) bytes of the weights that members load."""
        loads = self._loads.values()
        return sum(load.loaded_bytes for load in loads), sum(load.total_bytes for load in loads)


class _Window:
    """Sums of what came within the last `window_s`, by place."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._totals: list[int] = []
        self._past: deque[tuple[float, list[int]]] = deque()
        """When, and the totals up to then; the first are those that the window begins with."""

    def add(self, rows: Sequence[int], now_s: float) -> None:
        if not any(rows):
            return
        if len(rows) != len(self._totals):
            self._totals = [0] * len(rows)
            self._past.clear()
        if not self._past or now_s - self._past[-1][0] >= self._window_s / N_SNAPSHOTS:
            self._past.append((now_s, self._totals))
        self._totals = list(map(add, self._totals, rows))
        while self._past[0][0] < now_s - self._window_s:
            self._past.popleft()

    def rows(self) -> list[int]:
        return list(map(sub, self._totals, self._past[0][1])) if self._past else []


def _grown(before: Sequence[int], after: Sequence[int]) -> Sequence[int]:
    """By how much counters have grown; counters that fell or are new have begun at 0."""
    if len(before) != len(after) or any(map(gt, before, after)):
        return after
    return list(map(sub, after, before))
