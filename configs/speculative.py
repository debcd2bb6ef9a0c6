"""Settings of speculation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from expertmesh.configs.section import Section


def _spelled_out(method: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if method is False else method


class SpeculativeConfig(Section):
    """Tokens that are drafted and then verified, several a step. Answers stay what they are without."""

    method: Annotated[Literal["off", "mtp"], BeforeValidator(_spelled_out)] = "off"
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
