"""Which of the two dispatch forms a step uses: decided alike on all ranks, from the headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

DispatchForm = Literal["capacity", "exact"]

EXACT_SAVES_BYTES = 1 << 20
"""What the count exchange of the exact form costs, in bytes that gloo carries in the same time: a
collective takes about a millisecond, in which loopback gloo carries a megabyte (benchmarks/exchange.py)."""


def choose_form(tokens: Sequence[int], n_hosts: int, top_k: int, row_bytes: int) -> DispatchForm:
    """Capacity: every host gets every token, no counts travel, two collectives a layer.

    Exact: a host gets the tokens that chose one of its experts, after a collective for the counts.
    It pays when the rows that need not travel weigh more than that collective: for long prefills on
    many hosts.

    Args:
        tokens: rows of each rank, as the headers say.
    """
    share_hit = 1.0 - (1.0 - 1.0 / n_hosts) ** top_k
    saved_bytes = max(tokens) * n_hosts * row_bytes * (1.0 - share_hit)
    return "exact" if saved_bytes > EXACT_SAVES_BYTES else "capacity"
