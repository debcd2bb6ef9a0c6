"""What every rank tells all others at the start of a step, and what follows from it.

Park, switch and the number of exchanges are a pure function of these headers, never of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True, slots=True)
class StepHeader:
    """One rank's part in the coming step. Every field travels as an int64."""

    generation: int
    step: int
    """Counts a generation's steps from 0; the same on all ranks."""
    tokens: int = 0
    """Rows that this router will dispatch in every MoE layer; 0 on expert hosts."""
    decode_tokens: int = 0
    """Sequences of this router that wait for their next token."""
    draft_passes: int = 0
    """Passes of the drafter that this router wants behind its first, which follows every step of a model
    that has a drafter."""
    draft_tokens: int = 0
    """Rows that this router will dispatch in each of them."""
    successor: int = 0
    """The generation that this rank is ready to go over to; 0 is none."""
    wanted: int = 0
    """One bit for each version of the weights, the oldest's lowest: whether this router has work for it."""

    @classmethod
    def n_fields(cls) -> int:
        """Length of the encoded header."""
        return len(fields(cls))

    def encode(self) -> list[int]:
        """The header as integers, in field order."""
        return list(astuple(self))

    @classmethod
    def decode(cls, values: Sequence[int]) -> StepHeader:
        """The opposite of `encode`."""
        return cls(*(int(v) for v in values))


@dataclass(frozen=True, slots=True)
class LayerExchange:
    """One MoE layer of a step, as all ranks know it beforehand."""

    moe_layer: int
    tokens: tuple[int, ...]
    """Rows that each rank dispatches."""


@dataclass(frozen=True, slots=True)
class StepAgreement:
    """What all ranks know alike once the headers are there: derived, never sent."""

    headers: tuple[StepHeader, ...]
    """In rank order."""

    @property
    def parks(self) -> bool:
        """Whether nobody has work: all ranks park, unless they switch."""
        return not any(h.tokens or h.wanted for h in self.headers)

    @property
    def successor(self) -> int:
        """The generation that all ranks go over to after this step; 0 is none."""
        return min(h.successor for h in self.headers)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Rows that each rank dispatches in every MoE layer, the drafter's first pass included."""
        return tuple(h.tokens for h in self.headers)

    @property
    def n_tokens(self) -> int:
        """Rows of the step over all routers."""
        return sum(h.tokens for h in self.headers)

    def exchanges(self, n_moe_layers: int, n_draft_layers: int) -> list[LayerExchange]:
        """What follows the headers in this step, in order.

        Args:
            n_moe_layers: those of the drafter included.
            n_draft_layers: how many of the last are the drafter's.
        """
        if not self.n_tokens:
            return []
        due = [LayerExchange(layer, self.tokens) for layer in range(n_moe_layers)]
        for further in range(max(h.draft_passes for h in self.headers)):
            tokens = tuple(h.draft_tokens if further < h.draft_passes else 0 for h in self.headers)
            first = n_moe_layers - n_draft_layers
            due += [LayerExchange(layer, tokens) for layer in range(first, n_moe_layers)]
        return due

    def next_turn(self, turn: int, n_versions: int) -> int:
        """Which version of the weights the step after this one computes with, as an index: a step has rows
        of one version alone, and versions that are wanted take turns.

        Args:
            turn: this step's version.
            n_versions: held by the generation.
        """
        wanted = 0
        for header in self.headers:
            wanted |= header.wanted
        after = [(turn + 1 + i) % n_versions for i in range(n_versions)]
        return next((version for version in after if wanted >> version & 1), turn)

    def mismatch(self, own: StepHeader) -> str | None:
        """What contradicts this rank's own generation and step, or None."""
        for rank, header in enumerate(self.headers):
            if (header.generation, header.step) != (own.generation, own.step):
                return (
                    f"rank {rank} is at generation {header.generation} step {header.step}, "
                    f"this rank at generation {own.generation} step {own.step}"
                )
        return None
