"""What a router is asked to do and what it answers, free of torch, Ray and gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "error", "cancelled"]

Cause = Literal["", "does_not_fit", "router_failed"]
"""Of an error: the request can never run on this router, or another router may run it."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; every default has been filled in by the gateway.

    Draws are keyed by (`seed`, position): batch, placement, retry and resume do not change them.
    """

    max_tokens: int
    min_tokens: int = 0
    """Output tokens before which none of `stop_token_ids` is drawn."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0: no bound."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    """64 random bits, unsigned."""
    stop_token_ids: frozenset[int] = frozenset()
    """The end-of-sequence ids stand here too, unless ignore_eos was asked for."""
    logprobs: int | None = None
    """Alternatives a token; 0 gives the chosen token's alone, None nothing."""
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, without a draw."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether logits depend on which tokens stand in the sequence."""
        return (
            self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Names one attempt at one request; the attempt rises when a lost router's work is resubmitted."""

    request_id: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to compute."""

    key: RequestKey
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    output_token_ids: tuple[int, ...] = ()
    """Tokens delivered before a resume; generation goes on behind them."""
    weights: int = 0
    """The version of the weights that it began with; 0 is the newest that the router has."""


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """A token's logprob and the most probable alternatives at its position."""

    token_ids: tuple[int, ...]
    """The token itself, then the alternatives, most probable first."""
    logprobs: tuple[float, ...]
    rank: int
    """Of the token itself; 1 is the most probable."""


@dataclass(frozen=True, slots=True)
class SequenceNews:
    """What one step brought for one request."""

    key: RequestKey
    index: int
    """Index in the output of the first of `token_ids`."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobRow, ...] = ()
    prompt_index: int = 0
    """Position in the prompt of the first of `prompt_logprobs`; position 0 has none."""
    prompt_logprobs: tuple[LogprobRow, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str = ""
    cause: Cause = ""
    """Of the error."""
    draft_tokens: int = 0
    """Drafts that the step verified."""
    accepted_tokens: int = 0
    """How many of them stand among `token_ids`."""


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """How busy a router is; gateways choose by it."""

    queued_requests: int = 0
    running_requests: int = 0
    queued_tokens: int = 0
    """Tokens that wait for their first step."""
    running_tokens: int = 0
    """Tokens of the running sequences, prompt and output."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine: its tokens and how far they are computed.

    The scheduler alone changes it, and only when a step is scheduled or committed.
    """

    request: Request
    token_ids: list[int]
    """Prompt, then output."""
    n_computed: int = 0
    """Tokens whose keys and values stand in the cache."""
    block_table: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    """Of the tokens behind the last, to be verified in the next step."""
    n_prompt_scored: int = 1
    """Prompt positions below this have had their prompt_logprobs delivered."""

    @classmethod
    def from_request(cls, request: Request) -> Sequence:
        """A sequence with nothing computed."""
        return cls(request, [*request.prompt_token_ids, *request.output_token_ids])

    @property
    def key(self) -> RequestKey:
        """The request's name."""
        return self.request.key

    @property
    def params(self) -> SamplingParams:
        """The request's sampling parameters."""
        return self.request.params

    @property
    def n_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.request.prompt_token_ids)

    @property
    def n_output(self) -> int:
        """Output tokens, those delivered before a resume included."""
        return len(self.token_ids) - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.token_ids) - self.n_computed
