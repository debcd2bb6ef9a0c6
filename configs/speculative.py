"""Settings of speculation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from expertmesh.configs.section import Section


class SpeculativeConfig(Section):
    """Tokens that are drafted and then verified, several a step. Answers stay what they are without."""

    method: Literal["off", "mtp"] = "off"
    """`mtp`: by the checkpoint's multi-token-prediction module, which is loaded then: one more layer, with
    experts of its own on the expert hosts."""
    tokens: int = Field(default=1, ge=1, le=16)
    """Drafts a step for each sequence."""
    adaptive: bool = True
    """Routers make fewer drafts, or none, while more do not pay."""

    @property
    def drafts(self) -> bool:
        """Whether tokens are drafted."""
        return self.method != "off"

    @property
    def max_drafts(self) -> int:
        """For each sequence in a step."""
        return self.tokens if self.drafts else 0
