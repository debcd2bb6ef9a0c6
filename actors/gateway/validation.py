"""The edge: every bound on a request, checked once, for HTTP and gRPC alike.

Each refusal is a `GatewayError` that names the field in the client's own words.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from dataclasses import replace

from expertmesh.actors.gateway.errors import ErrorKind, GatewayError, invalid
from expertmesh.actors.gateway.requests import GenerationRequest, ModelCard, Prompt, RawParams, RawRequest
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.configs.schema import LimitsConfig
from expertmesh.engine.request import SamplingParams

_SEED_MASK = (1 << 64) - 1
_MAX_REQUEST_ID_CHARS = 128


class Validator:
    """Turns raw requests into ones that can be served.

    Args:
        card: the served model.
        limits: the deployment's bounds.
        tokenizer: the checkpoint's; None when it has none (token-id prompts alone are served).
    """

    def __init__(self, card: ModelCard, limits: LimitsConfig, tokenizer: TextTokenizer | None) -> None:
        self._card = card
        self._limits = limits
        self._tokenizer = tokenizer

    async def validate(self, raw: RawRequest) -> GenerationRequest:
        """Checks every field, tokenizes and fills in the defaults.

        Raises:
            GatewayError: the first field that is out of bounds, or an unknown model.
        """
        self.check_model(raw.model)
        if len(raw.request_id) > _MAX_REQUEST_ID_CHARS:
            raise invalid(
                "request_id", f"has {len(raw.request_id)} characters, at most {_MAX_REQUEST_ID_CHARS}"
            )
        _check_client_deadline(raw.timeout_s)
        check = _ParamCheck(raw, self._limits, self._card)
        n = check.n()
        self._check_count(raw, n)
        field = raw.names.get("prompt", "prompt")
        prompts = [await self._token_ids(prompt, field, raw.adds_special_tokens) for prompt in raw.prompts]
        max_tokens = check.max_tokens(max(len(prompt) for prompt in prompts), field)
        sampling = check.sampling(max_tokens)
        if raw.params.stop and self._tokenizer is None:
            raise invalid(
                "stop", f"the checkpoint of {self._card.name!r} has no tokenizer: use stop_token_ids"
            )
        timeout_s = self._limits.request_timeout_s
        return GenerationRequest(
            request_id=raw.request_id or secrets.token_hex(16),
            prompts=tuple(prompts),
            sampling=tuple(replace(sampling, seed=derive_seed(sampling.seed, i)) for i in range(n)),
            stop=raw.params.stop,
            timeout_s=timeout_s if raw.timeout_s is None else min(raw.timeout_s, timeout_s),
            eos_token_ids=self._card.eos_token_ids,
            caller=raw.caller,
            record=raw.record,
        )

    def check_model(self, model: str) -> None:
        """Refuses the name of a model that is not served; an empty name means any.

        Raises:
            GatewayError: MODEL_NOT_FOUND.
        """
        if model and model != self._card.name:
            message = f"model: {model!r} is not served here, only {self._card.name!r}"
            raise GatewayError(ErrorKind.MODEL_NOT_FOUND, message, "model")

    async def tokenize(self, text: str, field: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The token ids of a text; a long one is encoded off the event loop.

        Raises:
            GatewayError: the checkpoint has no tokenizer.
        """
        if self._tokenizer is None:
            raise invalid(
                field,
                f"the checkpoint of {self._card.name!r} has no tokenizer: send token ids instead of text",
            )
        if self._tokenizer.is_long(text):
            return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens)
        return self._tokenizer.encode(text, add_special_tokens)

    def _check_count(self, raw: RawRequest, n: int) -> None:
        field = raw.names.get("prompt", "prompt")
        if not raw.prompts:
            raise invalid(field, "must not be empty")
        most = self._limits.max_queued_requests
        if len(raw.prompts) * n > most:
            raise invalid(field, f"{len(raw.prompts)} prompts times n = {n} are more than {most} requests")

    async def _token_ids(self, prompt: Prompt, field: str, adds_special_tokens: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if not prompt:
                raise invalid(field, "must not be empty")
            token_ids = await self.tokenize(prompt, field, adds_special_tokens)
        else:
            token_ids = prompt
        if not token_ids:
            raise invalid(field, "must not be empty")
        limits = self._limits
        context = self._card.max_context_tokens
        most = min(limits.max_prompt_tokens or context, context - 1)
        if len(token_ids) > most:
            raise invalid(
                field, f"has {len(token_ids)} tokens, at most {most} are served (context {context} tokens)"
            )
        _check_token_ids(token_ids, field, self._card.vocab_size)
        return token_ids


class _ParamCheck:
    """The sampling parameters of one request."""

    def __init__(self, raw: RawRequest, limits: LimitsConfig, card: ModelCard) -> None:
        self._raw = raw
        self._params: RawParams = raw.params
        self._limits = limits
        self._card = card

    def n(self) -> int:
        n = 1 if self._params.n is None else self._params.n
        return self._bounded("n", n, 1, self._limits.max_n)

    def max_tokens(self, n_prompt: int, prompt_field: str) -> int:
        """The most tokens to generate behind a prompt of `n_prompt` tokens."""
        left = self._card.max_context_tokens - n_prompt
        most = self._limits.max_output_tokens
        asked = self._params.max_tokens
        if asked is None:
            wanted = left if self._raw.fills_context else self._limits.default_output_tokens
            return min(wanted, left, most or left)
        name = self._name("max_tokens")
        if asked < 1:
            raise invalid(name, f"must be at least 1, got {asked}")
        if most is not None and asked > most:
            raise invalid(name, f"must be at most {most}, got {asked}")
        if asked > left:
            context = self._card.max_context_tokens
            raise invalid(
                name,
                f"the model's context is {context} tokens, but {n_prompt} in {prompt_field} and {asked} "
                f"for the answer are {n_prompt + asked}; at most {left} can be generated",
            )
        return asked

    def sampling(self, max_tokens: int) -> SamplingParams:
        given, limits = self._params, self._limits
        self._check_stop()
        stop_ids = self._check_stop_token_ids()
        seed = secrets.randbits(64) if given.seed is None else given.seed & _SEED_MASK
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self._bounded("min_tokens", given.min_tokens or 0, 0, max_tokens),
            temperature=self._real("temperature", given.temperature, 1.0, 0.0, 2.0),
            top_k=self._top_k(),
            top_p=self._real("top_p", given.top_p, 1.0, 0.0, 1.0, above=True),
            min_p=self._real("min_p", given.min_p, 0.0, 0.0, 1.0),
            repetition_penalty=self._real(
                "repetition_penalty", given.repetition_penalty, 1.0, 0.0, 10.0, True
            ),
            presence_penalty=self._real("presence_penalty", given.presence_penalty, 0.0, -2.0, 2.0),
            frequency_penalty=self._real("frequency_penalty", given.frequency_penalty, 0.0, -2.0, 2.0),
            seed=seed,
            stop_token_ids=stop_ids if given.ignore_eos else stop_ids | self._card.eos_token_ids,
            logprobs=self._optional("logprobs", given.logprobs, limits.max_logprobs),
            prompt_logprobs=self._optional("prompt_logprobs", given.prompt_logprobs, limits.max_logprobs),
        )

    def _check_stop(self) -> None:
        stop, limits, name = self._params.stop, self._limits, self._name("stop")
        if len(stop) > limits.max_stop_strings:
            raise invalid(name, f"has {len(stop)} strings, at most {limits.max_stop_strings} are served")
        for text in stop:
            if not text:
                raise invalid(name, "a stop string must not be empty")
            if len(text) > limits.max_stop_length:
                raise invalid(
                    name,
                    f"a string has {len(text)} characters, at most {limits.max_stop_length} are served",
                )

    def _check_stop_token_ids(self) -> frozenset[int]:
        token_ids, name = self._params.stop_token_ids, self._name("stop_token_ids")
        most = self._limits.max_stop_token_ids
        if len(token_ids) > most:
            raise invalid(name, f"has {len(token_ids)} ids, at most {most} are served")
        _check_token_ids(token_ids, name, self._card.vocab_size)
        return frozenset(token_ids)

    def _top_k(self) -> int:
        top_k = self._params.top_k
        if top_k is None or top_k == -1:  # -1 is vLLM's "no bound"
            return 0
        if top_k < 0:
            raise invalid(self._name("top_k"), f"must be 0 (no bound) or more, got {top_k}")
        return min(top_k, self._card.vocab_size)

    def _optional(self, field: str, value: int | None, most: int) -> int | None:
        return None if value is None else self._bounded(field, value, 0, most)

    def _bounded(self, field: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            raise invalid(self._name(field), f"must be between {least} and {most}, got {value}")
        return value

    def _real(
        self,
        field: str,
        value: float | None,
        default: float,
        least: float,
        most: float,
        above: bool = False,
    ) -> float:
        """A finite number in [least, most], or in (least, most] with `above`."""
        if value is None:
            return default
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            bound = f"above {least:g} and at most {most:g}" if above else f"between {least:g} and {most:g}"
            raise invalid(self._name(field), f"must be {bound}, got {value:g}")
        return value

    def _name(self, field: str) -> str:
        return self._raw.names.get(field, field)


def derive_seed(seed: int, index: int) -> int:
    """The seed of a prompt's completion `index`; the first keeps the request's own (SplitMix64)."""
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) & _SEED_MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _SEED_MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _SEED_MASK
    return mixed ^ (mixed >> 31)


def _check_client_deadline(timeout_s: float | None) -> None:
    if timeout_s is not None and timeout_s <= 0:
        raise GatewayError(ErrorKind.DEADLINE, "the client's deadline had passed when the request arrived")


def _check_token_ids(token_ids: Sequence[int], field: str, vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise invalid(field, f"token id {bad} is outside the vocabulary of {vocab_size} tokens")
