"""The answers of OpenAI's HTTP API: choices, logprobs, usage and errors, as plain dictionaries.

Streams render one dictionary a delta, so nothing here builds pydantic models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.requests import Completed, Delta, GenerationRequest, Spent
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.engine.request import LogprobRow

HTTP_STATUS = {
    ErrorKind.INVALID: 400,
    ErrorKind.MODEL_NOT_FOUND: 404,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.QUEUE_FULL: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.REFUSED: 409,
    ErrorKind.DEADLINE: 504,
    ErrorKind.INTERNAL: 500,
    ErrorKind.DOES_NOT_FIT: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.RATE_LIMITED: 429,
}
_ERROR_TYPE = {
    ErrorKind.INVALID: "invalid_request_error",
    ErrorKind.MODEL_NOT_FOUND: "not_found_error",
    ErrorKind.TOO_LARGE: "invalid_request_error",
    ErrorKind.QUEUE_FULL: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "service_unavailable_error",
    ErrorKind.REFUSED: "conflict_error",
    ErrorKind.DEADLINE: "timeout_error",
    ErrorKind.INTERNAL: "internal_server_error",
    ErrorKind.DOES_NOT_FIT: "invalid_request_error",
    ErrorKind.UNAUTHENTICATED: "authentication_error",
    ErrorKind.FORBIDDEN: "permission_error",
    ErrorKind.RATE_LIMITED: "rate_limit_error",
}
_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; the least that clients expect."""

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def error_body(error: GatewayError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {
        "error": {
            "message": error.message,
            "type": _ERROR_TYPE[error.kind],
            "param": error.field,
            "code": error.kind.value if error.kind is not ErrorKind.INVALID else None,
        }
    }


def usage(request: GenerationRequest, spent: Spent) -> dict[str, Any]:
    """What a request cost; with speculation, how many drafts were right and wrong."""
    n_prompt = request.n_prompt_tokens
    figures: dict[str, Any] = {
        "prompt_tokens": n_prompt,
        "completion_tokens": spent.tokens,
        "total_tokens": n_prompt + spent.tokens,
    }
    if spent.draft_tokens:
        figures["completion_tokens_details"] = {
            "accepted_prediction_tokens": spent.accepted_tokens,
            "rejected_prediction_tokens": spent.rejected_tokens,
        }
    return figures


class Renderer:
    """Renders one request's answers, in the form of text completions.

    Args:
        request: what is answered.
        model: the served model's name.
        tokenizer: for the tokens' texts in logprobs.
        with_token_ids: whether `return_token_ids` was asked for.
    """

    id_prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"
    prompt_in_choices = True
    """Whether choices, or else the answer, tell of the prompt."""

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        tokenizer: TextTokenizer | None,
        with_token_ids: bool,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._with_token_ids = with_token_ids
        self._head = {
            "id": f"{self.id_prefix}-{request.request_id}",
            "object": self.kind,
            "created": int(time.time()),
            "model": model,
        }
        self._chunk_head = _dumps({**self._head, "object": self.chunk_kind})[:-1]
        self._n_chars = [0] * request.n_completions
        self._started: set[int] = set()
        self.spent = Spent()
        """Over all completions, on what has been rendered."""

    def whole(self, completions: Sequence[Completed]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        self.spent = Spent()
        for completed in completions:
            self.spent.add(completed)
        answer = {**self._head, "system_fingerprint": _fingerprint(completions[0].weights)}
        answer["choices"] = [self._choice(i, c) for i, c in enumerate(completions)]
        answer["usage"] = usage(self._request, self.spent)
        if self._with_token_ids and len(self._request.prompts) == 1:
            answer["prompt_token_ids"] = self._request.prompts[0]
        if not self.prompt_in_choices and self._request.sampling[0].prompt_logprobs is not None:
            answer["prompt_logprobs"] = self._prompt_logprobs(0, completions[0].prompt_logprobs)
        return answer

    def chunks(self, deltas: Sequence[Delta]) -> str:
        """Server-sent events for what is new."""
        return "".join([self._event(delta) for delta in deltas])

    def usage_chunk(self) -> str:
        """The event with the stream's usage."""
        spent = _dumps(usage(self._request, self.spent))
        return f'data: {self._chunk_head},"choices":[],"usage":{spent}}}\n\n'

    def _choice(self, index: int, completed: Completed) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, **self._body(index, completed)}
        choice["logprobs"] = self._logprobs(index, completed.token_ids, completed.logprobs)
        choice.update(self._ending(index, completed))
        if self._with_token_ids:
            choice["token_ids"] = completed.token_ids
            if self.prompt_in_choices:
                choice["prompt_token_ids"] = self._request.prompts[index // self._request.n]
        if self.prompt_in_choices and self._request.sampling[0].prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(index, completed.prompt_logprobs)
        return choice

    def _event(self, delta: Delta) -> str:
        index = delta.index
        self.spent.add(delta)
        first = index not in self._started
        body = self._delta_body(delta, first)
        if body is None:
            return ""
        choice: dict[str, Any] = {"index": index, **body}
        choice["logprobs"] = self._logprobs(index, delta.token_ids, delta.logprobs)
        choice["finish_reason"] = None
        if delta.finish_reason is not None:
            choice.update(self._ending(index, delta))
        tail = ""
        if self._with_token_ids:
            choice["token_ids"] = delta.token_ids
            if first and self.prompt_in_choices:
                choice["prompt_token_ids"] = self._request.prompts[index // self._request.n]
            if not self._started and len(self._request.prompts) == 1:
                tail = f',"prompt_token_ids":{_dumps(self._request.prompts[0])}'
        if first:
            self._started.add(index)
        tail += f',"system_fingerprint":"{_fingerprint(delta.weights)}"'
        return f'data: {self._chunk_head},"choices":[{_dumps(choice)}]{tail}}}\n\n'

    def _body(self, index: int, completed: Completed) -> dict[str, Any]:
        """What a choice answers."""
        return {"text": completed.text}

    def _delta_body(self, delta: Delta, first: bool) -> dict[str, Any] | None:
        """What is new of a choice; None when that is not worth an event."""
        return {"text": delta.text}

    def _ending(self, index: int, part: Delta | Completed) -> dict[str, Any]:
        return {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}

    def _logprobs(
        self, index: int, token_ids: Sequence[int], rows: Sequence[LogprobRow]
    ) -> dict[str, Any] | None:
        n_top = self._request.sampling[0].logprobs
        if n_top is None:
            return None
        tokens, offsets = [], []
        for token_id in token_ids:
            text = self._text(token_id)
            tokens.append(text)
            offsets.append(self._n_chars[index])
            self._n_chars[index] += len(text)
        return {
            "text_offset": offsets,
            "tokens": tokens,
            "token_logprobs": [finite(row.logprobs[0]) for row in rows],
            "top_logprobs": [
                {self._text(t): finite(lp) for t, lp in reversed(alternatives(row, n_top, True))}
                for row in rows
            ],
        }

    def _prompt_logprobs(self, index: int, rows: Sequence[LogprobRow]) -> list[Any]:
        """vLLM's form: None for the first token, then {token id: {logprob, rank, decoded_token}}."""
        return [None, *(self._prompt_row(row) for row in rows)] if index % self._request.n == 0 else []

    def _prompt_row(self, row: LogprobRow) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        ranked = sorted(zip(row.token_ids, row.logprobs, strict=True), key=lambda e: -e[1])
        ranks = {token_id: rank for rank, (token_id, _) in enumerate(dict(ranked).items(), 1)}
        for position, (token_id, logprob) in enumerate(zip(row.token_ids, row.logprobs, strict=True)):
            entries.setdefault(
                str(token_id),
                {
                    "logprob": finite(logprob),
                    "rank": row.rank if position == 0 else ranks[token_id],
                    "decoded_token": self._text(token_id),
                },
            )
        return entries

    def _text(self, token_id: int) -> str:
        return self._tokenizer.piece(token_id)[0] if self._tokenizer else f"token_id:{token_id}"


def alternatives(row: LogprobRow, n_top: int, with_chosen: bool) -> list[tuple[int, float]]:
    """The n_top most probable tokens of a row, most probable first; the chosen one too if asked for."""
    unique = dict(zip(row.token_ids, row.logprobs, strict=True))
    ranked = sorted(unique.items(), key=lambda entry: -entry[1])
    top = ranked[:n_top]
    if with_chosen and row.token_ids[0] not in dict(top):
        top.append((row.token_ids[0], row.logprobs[0]))
    return top


def finite(logprob: float) -> float:
    """A logprob as JSON can tell it."""
    return max(logprob, _LEAST_LOGPROB)


def _fingerprint(weights: int) -> str:
    """What OpenAI's clients know as the configuration behind an answer: the version of the weights."""
    return f"weights-{weights}"
