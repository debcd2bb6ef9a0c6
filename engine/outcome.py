"""What a step's outcome makes of a sequence. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh.engine.batch import SampledToken, ScheduledSequence, SequenceResult, StepBatch, StepResult
from expertmesh.engine.news import logprob_row
from expertmesh.engine.request import FinishReason, Sequence, SequenceNews


class StepOrderError(RuntimeError):
    """schedule, run and commit were not called in turn, or the result is not the batch's."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where answers end at the latest."""

    max_context_tokens: int

    def draws(self, sequence: Sequence) -> bool:
        """Whether another token belongs to the answer."""
        return self.tokens_left(sequence) > 0

    def tokens_left(self, sequence: Sequence) -> int:
        """Tokens that the answer can still get."""
        return min(
            sequence.params.max_tokens - sequence.n_output,
            self.max_context_tokens - len(sequence.token_ids),
        )


def take_outcome(
    sequence: Sequence, scheduled: ScheduledSequence, outcome: SequenceResult, limits: Limits
) -> SequenceNews | None:
    """Gives a sequence what a step brought; None when there is nothing to tell of it.

    A finish reason in the news means that the sequence has ended.
    """
    index = sequence.n_output
    prompt_index, prompt_scored = _new_prompt_scores(sequence, scheduled, outcome)
    taken, finish = _take_tokens(sequence, outcome, limits)
    n_accepted = max(len(outcome.sampled) - 1, 0)
    sequence.n_computed += scheduled.n_known + n_accepted
    sequence.drafts = outcome.drafts
    if not outcome.sampled:
        if sequence.n_pending == 0:
            finish = "length"
        elif not prompt_scored:
            return None
    return SequenceNews(
        key=sequence.key,
        index=index,
        token_ids=tuple(token.token_id for token in taken),
        logprobs=tuple(logprob_row(token) for token in taken if token.logprobs),
        prompt_index=prompt_index,
        prompt_logprobs=tuple(map(logprob_row, prompt_scored)),
        finish_reason=finish,
        stop_token_id=taken[-1].token_id if finish == "stop" else None,
        draft_tokens=scheduled.n_drafts,
        accepted_tokens=min(n_accepted, len(taken)),
    )


def _take_tokens(
    sequence: Sequence, outcome: SequenceResult, limits: Limits
) -> tuple[list[SampledToken], FinishReason | None]:
    """Appends what was sampled up to the answer's end, and says whether that was it."""
    taken: list[SampledToken] = []
    for token in outcome.sampled:
        sequence.token_ids.append(token.token_id)
        taken.append(token)
        if token.token_id in sequence.params.stop_token_ids:
            return taken, "stop"
        if not limits.draws(sequence):
            return taken, "length"
    return taken, None


def _new_prompt_scores(
    sequence: Sequence, scheduled: ScheduledSequence, outcome: SequenceResult
) -> tuple[int, tuple[SampledToken, ...]]:
    """The position of the first, and those that were not delivered before: a recomputed prompt brings
    scores again."""
    scored = outcome.prompt_scored
    if not scored:
        return 0, scored
    first = scheduled.n_context + 1
    scored = scored[max(0, sequence.n_prompt_scored - first) :]
    position = max(first, sequence.n_prompt_scored)
    sequence.n_prompt_scored = position + len(scored)
    return position, scored


def check_fits(batch: StepBatch, result: StepResult) -> None:
    """Returns when the result has what its batch asked for (`StepOrderError`)."""
    if len(result.results) != len(batch.sequences):
        raise StepOrderError(
            f"the step has {len(batch.sequences)} sequences and its result {len(result.results)}"
        )
    for scheduled, outcome in zip(batch.sequences, result.results, strict=True):
        most = scheduled.n_drafts + 1 if scheduled.samples else 0
        if (
            not min(most, 1) <= len(outcome.sampled) <= most
            or len(outcome.prompt_scored) != len(scheduled.prompt_targets)
            or len(outcome.drafts) > scheduled.drafts_wanted
        ):
            raise StepOrderError(
                f"the result for request {scheduled.key.request_id!r} does not hold what its step asked for"
            )
