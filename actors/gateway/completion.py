"""One completion in flight: the tokens so far, which attempt they come from, and their text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from expertmesh.actors.gateway.detokenize import IncrementalDecoder, StopMatcher
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.requests import Delta
from expertmesh.actors.gateway.routers import Link
from expertmesh.actors.gateway.telemetry import TokenClock
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.engine.request import LogprobRow, SamplingParams
from expertmesh.proto.v1 import internal_pb2 as pb

_MAX_ROUTER_FAILURES = 3
"""Attempts that may end in a router's own failure: if the request is what breaks them, some are spared."""


@dataclass(frozen=True, slots=True)
class CompletionSpec:
    """What a completion is to be."""

    request_id: str
    """Unique among everything that the routers hold."""
    index: int
    """In the client's request."""
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    eos_token_ids: frozenset[int]
    shown_special_ids: frozenset[int] = frozenset()
    traceparent: str = ""
    """The span that routers' spans are part of; empty when it is not traced."""


class Completion:
    """A completion from its submission to its end, over as many routers as it takes.

    Tokens are taken only from the current attempt and only at exactly the next index, so that the client
    sees each once, whatever happens to the routers.

    Args:
        spec: what it is to be.
        tokenizer: None leaves the text empty.
        on_news: called when `take` has something to give, or `error` is set.
        on_lost: called when the router is gone and the completion has to be placed again.
        clock: takes the times of its tokens.
    """

    def __init__(
        self,
        spec: CompletionSpec,
        tokenizer: TextTokenizer | None,
        on_news: Callable[[Completion], None],
        on_lost: Callable[[Completion], None],
        clock: TokenClock | None = None,
    ) -> None:
        self.spec = spec
        self.attempt = -1
        self.weights = 0
        """The version of the weights that it is computed with; 0 before it was placed."""
        self.link: Link | None = None
        self.error: GatewayError | None = None
        self.ended = False
        """Whether the last delta has been taken."""
        self._on_news = on_news
        self._on_lost = on_lost
        self._clock = clock
        self._decoder = None
        if tokenizer:
            decode = partial(tokenizer.decode, shown_special_ids=spec.shown_special_ids)
            self._decoder = IncrementalDecoder(decode, spec.prompt_token_ids)
        self._stops = StopMatcher(spec.stop) if spec.stop and tokenizer else None
        self._token_ids: list[int] = []
        self._logprobs: list[LogprobRow] = []
        self._prompt_logprobs: list[LogprobRow] = []
        self._n_taken = 0
        self._draft_tokens = 0
        self._accepted_tokens = 0
        self._n_router_failures = 0
        self._last: pb.SequenceNews | None = None

    @property
    def request_id(self) -> str:
        """The name on the routers' streams."""
        return self.spec.request_id

    @property
    def n_tokens(self) -> int:
        """Tokens received."""
        return len(self._token_ids)

    @property
    def is_first(self) -> bool:
        """Whether nothing has been taken yet."""
        return self._n_taken == 0

    @property
    def is_last(self) -> bool:
        """Whether the next `take` is the last, or there is an error to raise."""
        return self._last is not None or self.error is not None

    def place(self, link: Link) -> None:
        """Submits to a router: the prompt and all tokens that have been received."""
        self.attempt += 1
        self.link = link
        if self._clock is not None:
            self._clock.placed(self.attempt, self.weights)
        link.submit(self._submit(), self)

    def give_up(self, error: GatewayError) -> None:
        """It cannot go on on any router."""
        self.error = error
        self._on_news(self)

    def stop(self) -> None:
        """Frees the request on its router; nothing more is taken."""
        self.ended = True
        link, self.link = self.link, None
        if link is not None and self._last is None:
            link.cancel(self)

    def accept(self, news: pb.SequenceNews) -> None:
        """Takes a step's news from the router (see `NewsSink`)."""
        if self.ended or self.is_last or news.attempt != self.attempt:
            return
        if news.finish_reason and news.finish_reason not in ("stop", "length"):
            self._end_by_router(news)
            return
        if gap := self._gap(news):
            self._fail(gap)
            return
        if news.prompt_logprobs:
            n_known = len(self._prompt_logprobs) - (news.prompt_index - 1)
            # A resumed request scores its prompt again, perhaps in other chunks.
            self._prompt_logprobs.extend(map(_row, news.prompt_logprobs[n_known:]))
        if news.token_ids and news.index < len(self._token_ids):
            return  # seen already
        if news.token_ids and self._clock is not None:
            self._clock.tokens(len(news.token_ids))
        self._token_ids.extend(news.token_ids)
        self._draft_tokens += news.draft_tokens
        self._accepted_tokens += news.accepted_tokens
        self._logprobs.extend(map(_row, news.logprobs))
        if news.finish_reason:
            self._last = news
        if news.token_ids or self._last is not None:
            self._on_news(self)

    def router_lost(self) -> None:
        """The router is gone: asks for another one, unless everything has been received."""
        self.link = None
        if not self.ended and self._last is None:
            self._on_lost(self)

    def take(self) -> Delta:
        """Everything received since the last call, as one delta; several steps become one."""
        first, self._n_taken = self._n_taken, len(self._token_ids)
        token_ids = self._token_ids[first:]
        delta = Delta(self.spec.index, token_ids=token_ids, logprobs=self._logprobs, weights=self.weights)
        self._logprobs = []
        delta.draft_tokens, self._draft_tokens = self._draft_tokens, 0
        delta.accepted_tokens, self._accepted_tokens = self._accepted_tokens, 0
        if first == 0:
            delta.prompt_logprobs = self._prompt_logprobs
        if self._decoder is not None:
            self._add_text(delta)
        if delta.finish_reason is None and self._last is not None:
            self._finish(delta, self._last)
        if delta.finish_reason is not None:
            self.stop()
        return delta

    def _add_text(self, delta: Delta) -> None:
        """Fills in the text, up to and without a stop string."""
        assert self._decoder is not None
        token_ids = delta.token_ids
        n_text = len(token_ids)
        if self._last is not None and n_text and self._ends_in_stop_token(self._last):
            n_text -= 1  # the token that ended it is no text
        pieces: list[str] = []
        stops, push = self._stops, self._decoder.push
        # Text of tokens that must come is not searched.
        n_unsearched = self.spec.sampling.min_tokens - (self._n_taken - len(token_ids))
        for position in range(n_text):
            piece = push(token_ids[position])
            if stops is None or position < n_unsearched:
                pieces.append(piece)
                continue
            sure, stop = stops.push(piece)
            pieces.append(sure)
            if stop is not None:
                delta.text = "".join(pieces)
                self._cut(delta, position + 1, stop)
                return
        if self._last is not None:
            rest = self._decoder.flush()
            if stops is not None:
                rest, stop = stops.push(rest)
                if stop is not None:
                    delta.text = "".join(pieces) + rest
                    self._cut(delta, len(token_ids), stop)
                    return
                rest += stops.flush()
            pieces.append(rest)
        delta.text = "".join(pieces)

    def _cut(self, delta: Delta, n_kept: int, stop: str) -> None:
        """Ends at a stop string: tokens behind the one that completed it do not exist."""
        del self._token_ids[len(self._token_ids) - (len(delta.token_ids) - n_kept) :]
        delta.token_ids = delta.token_ids[:n_kept]
        delta.logprobs = delta.logprobs[:n_kept]
        delta.accepted_tokens = min(delta.accepted_tokens, n_kept)
        delta.finish_reason, delta.stop_reason = "stop", stop

    def _ends_in_stop_token(self, last: pb.SequenceNews) -> bool:
        return last.finish_reason == "stop" and self._token_ids[-1] == last.stop_token_id

    def _finish(self, delta: Delta, last: pb.SequenceNews) -> None:
        delta.finish_reason = last.finish_reason
        token_id = last.stop_token_id
        if last.finish_reason == "stop" and token_id >= 0 and token_id not in self.spec.eos_token_ids:
            delta.stop_reason = token_id

    def _fail(self, message: str, kind: ErrorKind = ErrorKind.INTERNAL) -> None:
        self.give_up(GatewayError(kind, message))

    def _gap(self, news: pb.SequenceNews) -> str:
        """What is missing before these news, or in them; empty when nothing is."""
        sampling, n_tokens, n_scored = self.spec.sampling, len(self._token_ids), len(self._prompt_logprobs)
        if news.prompt_logprobs:
            if news.prompt_index - 1 > n_scored:
                return f"the router skipped from prompt score {n_scored + 1} to {news.prompt_index}"
            n_scored = max(n_scored, news.prompt_index - 1 + len(news.prompt_logprobs))
        if not news.token_ids and not news.finish_reason:
            return ""
        if news.index > n_tokens:
            return f"the router skipped from token {n_tokens} to {news.index}"
        if sampling.prompt_logprobs is not None and n_scored < len(self.spec.prompt_token_ids) - 1:
            return f"the router left out prompt scores from {n_scored + 1} on"
        n_rows = 0 if sampling.logprobs is None else len(news.token_ids)
        if len(news.logprobs) != n_rows:
            return f"the router gave {len(news.logprobs)} logprobs for {n_rows} tokens"
        return ""

    def _end_by_router(self, news: pb.SequenceNews) -> None:
        """The router gives the request up: another one goes on if it can."""
        if news.cause == "does_not_fit":
            resumed = f" after {len(self._token_ids)} tokens of the answer" if self._token_ids else ""
            self._fail(f"the request does not fit{resumed}: {news.error}", ErrorKind.DOES_NOT_FIT)
            return
        if news.cause == "router_failed":
            self._n_router_failures += 1
            if self._n_router_failures < _MAX_ROUTER_FAILURES:
                self.router_lost()
                return
        self._fail(f"the router ended the request: {news.error or news.finish_reason}")

    def _submit(self) -> pb.Submit:
        sampling = self.spec.sampling
        scores_prompt = sampling.prompt_logprobs is not None and not self._token_ids
        return pb.Submit(
            request_id=self.spec.request_id,
            attempt=self.attempt,
            prompt_token_ids=self.spec.prompt_token_ids,
            output_token_ids=self._token_ids,
            weights=self.weights,
            traceparent=self.spec.traceparent,
            sampling=pb.Sampling(
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                seed=sampling.seed,
                stop_token_ids=sorted(sampling.stop_token_ids),
                logprobs=-1 if sampling.logprobs is None else sampling.logprobs,
                prompt_logprobs=sampling.prompt_logprobs if scores_prompt else -1,
            ),
        )


def _row(row: pb.LogprobRow) -> LogprobRow:
    return LogprobRow(tuple(row.token_ids), tuple(row.logprobs), row.rank)
