"""How many drafts to make: as many as pay. No torch.

Each router decides for itself and tells the others in its headers. Nothing but time depends on it: a draft
that is not made, or not accepted, changes no token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from expertmesh.engine.batch import StepBatch, StepResult

FIRST_STEPS = 12
"""Decode steps that every number of drafts is tried for when so many sequences run for the first time."""
PROBE_EVERY_STEPS = 256
PROBE_STEPS = 8
"""From time to time the others are tried again: texts and neighbours change."""
SMOOTHING = 1 / 32
MARGIN = 1.03
"""Another number of drafts has to be better by this factor to be taken."""
MOST_OUTLYING = 4.0
"""A step that took longer than this many usual ones counts as so many: hiccups do not decide."""


@dataclass(slots=True)
class _Measured:
    """Steps with one number of drafts."""

    n_steps: int = 0
    step_ms: float = 0.0
    tokens: float = 0.0
    """That a step brought."""

    def note(self, step_ms: float, tokens: int) -> None:
        self.n_steps += 1
        weight = max(SMOOTHING, 1 / self.n_steps)
        if self.n_steps > 1:
            step_ms = min(step_ms, MOST_OUTLYING * self.step_ms)
        self.step_ms += weight * (step_ms - self.step_ms)
        self.tokens += weight * (tokens - self.tokens)

    @property
    def tokens_per_ms(self) -> float:
        return self.tokens / max(self.step_ms, 1e-6)


@dataclass(slots=True)
class _Choice:
    """What is known while about so many sequences run."""

    measured: list[_Measured]
    best: int
    n_steps: int = 0
    probed: int = 0
    """The number of drafts that was tried last."""
    probe_steps_left: int = 0

    def current(self) -> int:
        untried = [n for n, measured in enumerate(self.measured) if measured.n_steps < FIRST_STEPS]
        if untried:
            return max(untried)
        return self.probed if self.probe_steps_left else self.best

    def note(self, n_drafts: int, step_ms: float, tokens: int) -> None:
        self.measured[n_drafts].note(step_ms, tokens)
        if any(measured.n_steps < FIRST_STEPS for measured in self.measured):
            return
        self.n_steps += 1
        self.probe_steps_left = max(0, self.probe_steps_left - 1)
        if self.n_steps % PROBE_EVERY_STEPS == 0:
            self.probed = (self.probed + 1) % len(self.measured)
            self.probe_steps_left = PROBE_STEPS
        rates = [measured.tokens_per_ms for measured in self.measured]
        found = rates.index(max(rates))
        if rates[found] > MARGIN * rates[self.best]:
            self.best = found


@dataclass(slots=True)
class DraftControl:
    """The number of drafts of a router's steps.

    Args:
        most: `speculative.tokens`; 0 where nothing is drafted.
        adaptive: whether fewer may pay.
    """

    most: int
    adaptive: bool = True
    _choices: dict[int, _Choice] = field(default_factory=dict)
    """By the binary magnitude of the sequences' number."""
    _last: int = -1
    """The drafts that the step before asked for: what a step verifies was made by the one before."""

    def drafts(self, n_sequences: int) -> int:
        """To be made for each sequence of the coming step, so many sequences running."""
        if not self.adaptive or not self.most:
            return self.most
        return self._choice(n_sequences).current()

    def observe(self, batch: StepBatch, result: StepResult, n_drafts: int, step_ms: float) -> None:
        """Learns from a step that was asked for so many drafts."""
        steady = n_drafts == self._last
        self._last = n_drafts
        if not (self.adaptive and self.most and steady) or batch.n_tokens != batch.n_decode_tokens:
            return
        n_sequences = len(batch.sequences)
        if batch.n_tokens != n_sequences * (1 + n_drafts):
            return
        tokens = sum(len(outcome.sampled) for outcome in result.results)
        self._choice(n_sequences).note(n_drafts, step_ms, tokens)

    def _choice(self, n_sequences: int) -> _Choice:
        magnitude = n_sequences.bit_length()
        if magnitude not in self._choices:
            measured = [_Measured() for _ in range(self.most + 1)]
            self._choices[magnitude] = _Choice(measured, best=self.most)
        return self._choices[magnitude]
