"""What a client asks and what it gets, in one form for HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expertmesh.actors.gateway.access.gate import UNCHECKED, Caller
from expertmesh.engine.request import LogprobRow, SamplingParams

if TYPE_CHECKING:
    from expertmesh.actors.gateway.telemetry import RequestRecord

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the gateway has to know of the served model."""

    name: str
    architecture: str
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: frozenset[int]
    n_experts: int = 0
    """Logical experts of a MoE layer."""


@dataclass(frozen=True, slots=True)
class RawParams:
    """Sampling parameters as the client gave them; None is "not given"."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request before validation. `names` translates fields into the client's own words."""

    prompts: tuple[Prompt, ...]
    params: RawParams
    model: str = ""
    """The served model's name; any when empty."""
    request_id: str = ""
    """Drawn when empty."""
    timeout_s: float | None = None
    """The client's own deadline, if the face knows one."""
    fills_context: bool = False
    """Whether a request without max_tokens may take what the context leaves (chat)."""
    adds_special_tokens: bool = True
    """Whether tokenizing a text prompt adds BOS and the like (a chat template writes them itself)."""
    names: dict[str, str] = field(default_factory=dict)
    caller: Caller = UNCHECKED
    record: RequestRecord | None = field(default=None, compare=False, repr=False)
    """Is told what becomes of it."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated request: every default is filled in, every bound is kept."""

    request_id: str
    prompts: tuple[tuple[int, ...], ...]
    sampling: tuple[SamplingParams, ...]
    """One for each of the n completions of a prompt; they differ in their seeds alone."""
    stop: tuple[str, ...]
    timeout_s: float
    eos_token_ids: frozenset[int]
    shown_special_ids: frozenset[int] = frozenset()
    """Special tokens that stand in the text all the same."""
    caller: Caller = UNCHECKED
    """Who asks; `caller.key_name` is for logs and metrics."""
    record: RequestRecord | None = field(default=None, compare=False, repr=False)
    """Is told what becomes of it."""

    @property
    def n(self) -> int:
        """Completions a prompt."""
        return len(self.sampling)

    @property
    def n_completions(self) -> int:
        """Completions in all; completion i belongs to prompt i // n."""
        return len(self.prompts) * self.n

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of all prompts together."""
        return sum(len(prompt) for prompt in self.prompts)


@dataclass(slots=True)
class Delta:
    """What is new of one completion since its last delta."""

    index: int
    """Of the completion in the request."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobRow] = field(default_factory=list)
    """As many as token_ids, when asked for."""
    prompt_logprobs: list[LogprobRow] = field(default_factory=list)
    """All of the prompt's, from position 1 on, with the first delta of the prompt's first completion."""
    finish_reason: str | None = None
    """"stop" or "length", with the completion's last delta."""
    stop_reason: str | int | None = None
    """The stop string or token id that ended it; None for the end-of-sequence token."""
    weights: int = 0
    """The version of the weights that computed it."""
    draft_tokens: int = 0
    """Drafts that were verified for it."""
    accepted_tokens: int = 0
    """Tokens of it that had been drafted."""


@dataclass(slots=True)
class Completed:
    """A whole completion: the sum of its deltas."""

    text: str
    token_ids: list[int]
    logprobs: list[LogprobRow]
    prompt_logprobs: list[LogprobRow]
    finish_reason: str
    stop_reason: str | int | None
    weights: int = 0
    """The version of the weights that computed it."""
    draft_tokens: int = 0
    """Drafts that were verified for it."""
    accepted_tokens: int = 0
    """Tokens of it that had been drafted."""


@dataclass(slots=True)
class Spent:
    """Tokens of a request's completions so far."""

    tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, more: Delta | Completed) -> None:
        """Counts a delta, or a whole completion."""
        self.tokens += len(more.token_ids)
        self.draft_tokens += more.draft_tokens
        self.accepted_tokens += more.accepted_tokens

    @property
    def rejected_tokens(self) -> int:
        """Drafts that were wrong, or came behind the end."""
        return self.draft_tokens - self.accepted_tokens
