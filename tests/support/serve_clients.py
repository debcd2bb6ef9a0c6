"""Requests for token ids through both faces of a deployment, by the clients that users have."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import openai

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

CALL_S = 180.0


@dataclass(frozen=True)
class Call:
    """One request for token ids, greedy unless `extra` says otherwise."""

    prompt: tuple[int, ...]
    max_tokens: int
    logprobs: bool = False
    prompt_logprobs: bool = False
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Answer:
    """What came back; a chunk's arrival times (s, monotonic) stand in `times_s`."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    """Of the second and all further prompt tokens."""
    finish_reason: str = ""
    weights: set[int] = field(default_factory=set)
    """Versions of the weights that its parts say they were computed with."""
    times_s: list[float] = field(default_factory=list)


class Clients:
    """The clients that users have, in one event loop."""

    def __init__(
        self, http_url: str, grpc_address: str, metadata: tuple[tuple[str, str], ...], key: str = ""
    ) -> None:
        self.metadata = metadata
        self._channel = grpc.aio.insecure_channel(grpc_address)
        self.inference = rpc.InferenceStub(self._channel)
        self.openai = openai.AsyncOpenAI(
            base_url=f"{http_url}/v1", api_key=key or "none", max_retries=0, timeout=CALL_S
        )

    async def close(self) -> None:
        await self.openai.close()
        await self._channel.close()

    async def grpc_whole(self, call: Call) -> Answer:
        """Inference.Generate"""
        whole = await self.inference.Generate(_request(call), timeout=CALL_S, metadata=self.metadata)
        [completion] = whole.completions
        answer = Answer(finish_reason=completion.finish_reason, weights={whole.weights_version})
        _take(answer, completion, whole.prompt_logprobs)
        return answer

    async def grpc_stream(self, call: Call, on_tokens: Callable[[int], bool] = lambda n: True) -> Answer:
        """Inference.GenerateStream, cancelled as soon as `on_tokens` (told how many there are) is False."""
        answer = Answer()
        stream = self.inference.GenerateStream(_request(call), timeout=CALL_S, metadata=self.metadata)
        async for chunk in stream:
            answer.times_s.append(time.monotonic())
            answer.weights.add(chunk.weights_version)
            _take(answer, chunk.delta, chunk.prompt_logprobs)
            if not on_tokens(len(answer.token_ids)):
                stream.cancel()
                break
        return answer

    async def http_whole(self, call: Call) -> Answer:
        """POST /v1/completions"""
        whole = await self.openai.completions.create(**_body(call))
        answer = Answer(weights={_version(whole.system_fingerprint)})
        _take_choice(answer, whole.choices[0])
        return answer

    async def http_stream(self, call: Call, on_tokens: Callable[[int], bool] = lambda n: True) -> Answer:
        """POST /v1/completions with stream, closed as soon as `on_tokens` is False."""
        answer = Answer()
        stream = await self.openai.completions.create(**_body(call), stream=True)
        async with stream:
            async for chunk in stream:
                answer.times_s.append(time.monotonic())
                answer.weights.add(_version(chunk.system_fingerprint))
                _take_choice(answer, chunk.choices[0])
                if not on_tokens(len(answer.token_ids)):
                    break
        return answer


def random_prompt(length: int, vocab_size: int, seed: int) -> tuple[int, ...]:
    """Token ids without the first two, which stand for the borders of texts."""
    numbers = random.Random(seed)
    return tuple(numbers.randrange(2, vocab_size) for _ in range(length))


def _request(call: Call) -> pb.GenerateRequest:
    params = pb.SamplingParams(
        max_tokens=call.max_tokens, temperature=call.temperature, seed=call.seed, ignore_eos=True
    )
    if call.logprobs:
        params.logprobs = 0
    if call.prompt_logprobs:
        params.prompt_logprobs = 0
    return pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=call.prompt), params=params)


def _take(answer: Answer, part: pb.Completion, prompt_rows: Sequence[pb.TokenLogprobs]) -> None:
    answer.token_ids.extend(part.token_ids)
    answer.logprobs.extend(row.chosen.logprob for row in part.logprobs)
    answer.prompt_logprobs.extend(row.chosen.logprob for row in prompt_rows[1:])
    answer.finish_reason = part.finish_reason or answer.finish_reason


def _body(call: Call) -> dict[str, Any]:
    extra: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
    if call.prompt_logprobs:
        extra["prompt_logprobs"] = 0
    return {
        "model": "",
        "prompt": list(call.prompt),
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "seed": call.seed,
        "logprobs": 0 if call.logprobs else None,
        "extra_body": extra,
    }


def _version(fingerprint: str) -> int:
    return int(fingerprint.removeprefix("weights-"))


def _take_choice(answer: Answer, choice: Any) -> None:
    answer.token_ids.extend(choice.token_ids)
    if choice.logprobs is not None:
        answer.logprobs.extend(choice.logprobs.token_logprobs)
    for row in (getattr(choice, "prompt_logprobs", None) or [])[1:]:
        # The prompt's own token stands first.
        answer.prompt_logprobs.append(next(iter(row.values()))["logprob"])
    answer.finish_reason = choice.finish_reason or answer.finish_reason
