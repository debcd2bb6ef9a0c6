"""What every part of the deployment file is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the deployment file: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
