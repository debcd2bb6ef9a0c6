"""`expertmesh generate`: one streamed generation in the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TextIO

from expertmesh.cli.endpoint import Endpoint
from expertmesh.cli.errors import CliError, UsageError
from expertmesh.proto.v1 import inference_pb2 as pb

MIN_RATE_S = 1e-3
"""No rate is given for less time than this."""


@dataclass
class Generation:
    """What a stream has brought so far."""

    started_s: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str = ""
    request_id: str = ""
    model: str = ""
    first_token_s: float | None = None
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the whole time, the prompt's included."""
        return len(self.token_ids) / max(self.seconds, MIN_RATE_S)

    def summary(self) -> str:
        """One line: tokens, seconds, tokens/s, time to the first token."""
        first_ms = (self.first_token_s or 0.0) * 1000
        return (
            f"{len(self.token_ids)} tokens in {self.seconds:.2f} s, {self.tokens_per_s:.1f} tokens/s "
            f"(first after {first_ms:.0f} ms, ended by {self.finish_reason or 'nothing'})"
        )

    def as_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(
            {
                "request_id": self.request_id,
                "model": self.model,
                "text": self.text,
                "token_ids": self.token_ids,
                "finish_reason": self.finish_reason,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": len(self.token_ids),
                "seconds": round(self.seconds, 6),
                "first_token_seconds": self.first_token_s and round(self.first_token_s, 6),
                "tokens_per_second": round(self.tokens_per_s, 3),
            },
            ensure_ascii=False,
        )


def build_request(
    prompt: str | None, prompt_ids: str | None, model: str, params: pb.SamplingParams
) -> pb.GenerateRequest:
    """A request for either a text prompt or token ids such as `1,2,3`.

    Raises:
        UsageError: both, neither, or ids that are no numbers.
    """
    if (prompt is None) == (prompt_ids is None):
        raise UsageError("give either --prompt or --prompt-ids")
    if prompt is not None:
        return pb.GenerateRequest(model=model, prompt=prompt, params=params)
    assert prompt_ids is not None
    try:
        ids = [int(part) for part in prompt_ids.replace(",", " ").split()]
        return pb.GenerateRequest(model=model, prompt_token_ids=pb.TokenIds(ids=ids), params=params)
    except ValueError as error:
        raise UsageError(f"--prompt-ids: {prompt_ids!r} is no list of token ids such as 1,2,3") from error


def stream(
    endpoint: Endpoint, request: pb.GenerateRequest, timeout_s: float, write: Callable[[str], None]
) -> Generation:
    """Runs a request and passes on its text as it comes (token ids where the model has no tokenizer).

    Raises:
        CliError: the call failed, or its stream ended without saying why.
    """
    generation = Generation(started_s=time.monotonic())
    for delta in _collect(endpoint.generate(request, timeout_s), generation):
        write(delta)
    generation.seconds = time.monotonic() - generation.started_s
    if not generation.finish_reason:
        raise CliError(f"{endpoint.address}: the stream ended before the generation did")
    return generation


def _collect(chunks: Iterable[pb.GenerateChunk], generation: Generation) -> Iterable[str]:
    for chunk in chunks:
        generation.request_id, generation.model = chunk.request_id, chunk.model
        generation.prompt_tokens = generation.prompt_tokens or len(chunk.prompt_token_ids)
        ids = list(chunk.delta.token_ids)
        if ids and generation.first_token_s is None:
            generation.first_token_s = time.monotonic() - generation.started_s
        generation.token_ids += ids
        generation.text += chunk.delta.text
        generation.finish_reason = chunk.delta.finish_reason or generation.finish_reason
        without_text = not generation.text and not chunk.delta.text
        yield " ".join([*map(str, ids), ""]) if without_text else chunk.delta.text


def run(
    address: str,
    app: str | None,
    request: pb.GenerateRequest,
    timeout_s: float,
    as_json: bool,
    out: TextIO = sys.stdout,
    err: TextIO = sys.stderr,
    key: str = "",
) -> None:
    """The command, once its options are parsed."""

    def write(text: str) -> None:
        if not as_json:
            out.write(text)
            out.flush()

    with Endpoint(address, app, key) as endpoint:
        generation = stream(endpoint, request, timeout_s, write)
    if as_json:
        print(generation.as_json(), file=out)
    else:
        print(file=out)
        print(generation.summary(), file=err)


def sampling_params(**given: Any) -> pb.SamplingParams:
    """The wire form of the options that were given; None leaves the server's default.

    Raises:
        UsageError: a value that does not fit its field.
    """
    params = pb.SamplingParams()
    for name, value in given.items():
        try:
            if isinstance(value, list):
                getattr(params, name).extend(value)
            elif value is not None:
                setattr(params, name, value)
        except ValueError as error:
            raise UsageError(f"--{name.replace('_', '-')}: {error}") from error
    return params
