"""Typed errors of the data plane; each names the culprit and the seconds."""

from __future__ import annotations


class GenerationLostError(RuntimeError):
    """The generation can't go on here: the step in progress has to run again on the next one.

    Args:
        generation: the number of the generation that was lost.
        reason: what was waited for, for how long, and what came instead.
    """

    def __init__(self, generation: int, reason: str) -> None:
        super().__init__(f"generation {generation} is lost: {reason}")
        self.generation = generation
        self.reason = reason


class EngineStoppedError(RuntimeError):
    """The engine has stopped and takes no more work."""
