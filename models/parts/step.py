"""What every layer of one step sees.

Shape suffixes: T tokens, R2 half the rotary features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from expertmesh.models.interface import ForwardBatch, MoeExchange, PagedCache

Mark = Callable[[str], None]
"""Attributes the time since the last call to a named part of the step."""


@dataclass(frozen=True, slots=True)
class Step:
    """One batch with its cache, its exchange and its rotary angles."""

    batch: ForwardBatch
    cache: PagedCache
    exchange: MoeExchange
    mark: Mark
    cos_TR2: Tensor
    sin_TR2: Tensor
