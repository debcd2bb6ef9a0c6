"""Where one member stands among the generations: what of the coordinator's messages is news to it."""

from __future__ import annotations

import enum


class AbandonNews(enum.Enum):
    """What an Abandon means to a member."""

    ASKED = "asked"
    """It has to leave the generation, and to answer when it is out."""
    ALREADY_OUT = "already out"
    """It is not in that generation: the answer can be given at once."""
    ASKED_BEFORE = "asked before"
    """It is leaving already: the answer will come."""


class GenerationTrack:
    """The generations that a member prepares, runs and leaves: at most one at a time, and only upwards."""

    def __init__(self) -> None:
        self.generation = 0
        """The one that the member runs or prepares, until it has left it; 0 is none."""
        self.seen_generation = 0
        """The highest that it was ever asked to prepare."""
        self._live = False
        self._abandoning = False
        self._epoch = 0

    @property
    def live(self) -> int:
        """The generation that the member may step in; 0 is none."""
        return self.generation if self._live and not self._abandoning else 0

    def prepare(self, number: int) -> bool:
        """A Prepare has come; False when it is late or double."""
        if number <= self.seen_generation:
            return False
        self.generation = self.seen_generation = number
        self._live = self._abandoning = False
        self._epoch = 0
        return True

    def go_live(self, number: int) -> bool:
        """A Live has come; False when it is late or double."""
        if number != self.generation or self._live or self._abandoning:
            return False
        self._live = True
        return True

    def wake(self, number: int, epoch: int) -> bool:
        """A Wake has come; False when it is late or double."""
        if number != self.live or epoch <= self._epoch:
            return False
        self._epoch = epoch
        return True

    def abandon(self, number: int) -> AbandonNews:
        """An Abandon has come."""
        if number != self.generation:
            return AbandonNews.ALREADY_OUT
        if self._abandoning:
            return AbandonNews.ASKED_BEFORE
        self._abandoning = True
        return AbandonNews.ASKED

    def abandoned(self, number: int) -> None:
        """The member is out of a generation."""
        if number == self.generation:
            self.generation = 0
            self._live = self._abandoning = False
