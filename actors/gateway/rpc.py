"""The gRPC face: expertmesh.v1.Inference, expertmesh.v1.Cluster and grpc.health.v1.Health.

Serve's gRPC proxy calls a method of the ingress class by the RPC's name. It cancels the call's coroutine or
generator when the client cancels and when the client's deadline passes (Ray 2.60, tried), which frees the
request; the deadline itself is not passed on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2

from expertmesh.actors.gateway.access.gate import UNCHECKED, Caller
from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError, invalid
from expertmesh.actors.gateway.requests import (
    Completed,
    Delta,
    GenerationRequest,
    RawParams,
    RawRequest,
    Spent,
)
from expertmesh.actors.gateway.telemetry import refusing
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.actors.gateway.topology import public_expert_load, public_topology
from expertmesh.engine.request import LogprobRow
from expertmesh.proto.v1 import inference_pb2 as public
from expertmesh.proto.v1 import internal_pb2 as pb

GRPC_CODE = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorKind.DOES_NOT_FIT: grpc.StatusCode.OUT_OF_RANGE,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
}
HEALTH_SERVICES = ("", "expertmesh.v1.Inference", "expertmesh.v1.Cluster")


class RpcFace:
    """The RPCs, apart from Serve.

    Args:
        core: generates.
        fresh_topology: asks the coordinator for its state, load figures included.
        changes: what clients may change in the cluster.
    """

    def __init__(
        self,
        core: GatewayCore,
        fresh_topology: Callable[[], Awaitable[pb.TopologyUpdate]],
        changes: ClusterChanges,
    ) -> None:
        self._core = core
        self._fresh_topology = fresh_topology
        self._changes = changes

    async def generate(
        self, message: public.GenerateRequest, caller: Caller = UNCHECKED
    ) -> public.GenerateResponse:
        """Inference.Generate"""
        request = await self._validate(message, caller)
        completions = await self._core.complete(request)
        spent = Spent()
        for completed in completions:
            spent.add(completed)
        tokenizer = self._core.tokenizer
        return public.GenerateResponse(
            request_id=request.request_id,
            model=self._core.card.name,
            prompt_token_ids=request.prompts[0],
            prompt_logprobs=_prompt_rows(request, completions[0].prompt_logprobs, tokenizer),
            completions=[_completion(i, c, tokenizer) for i, c in enumerate(completions)],
            usage=_usage(request, spent),
            weights_version=completions[0].weights,
        )

    async def generate_stream(
        self, message: public.GenerateRequest, caller: Caller = UNCHECKED
    ) -> AsyncGenerator[public.GenerateChunk, None]:
        """Inference.GenerateStream"""
        request = await self._validate(message, caller)
        core = self._core
        n_open, seen, first = request.n_completions, Spent(), True
        async with aclosing(core.generate(request)) as stream:
            async for deltas in stream:
                for delta in deltas:
                    seen.add(delta)
                    n_open -= delta.finish_reason is not None
                    chunk = public.GenerateChunk(
                        request_id=request.request_id,
                        model=core.card.name,
                        delta=_completion(delta.index, delta, core.tokenizer),
                        weights_version=delta.weights,
                    )
                    if first:
                        first = False
                        chunk.prompt_token_ids.extend(request.prompts[0])
                    if delta.prompt_logprobs:
                        rows = _prompt_rows(request, delta.prompt_logprobs, core.tokenizer)
                        chunk.prompt_logprobs.extend(rows)
                    if n_open == 0:
                        chunk.usage.CopyFrom(_usage(request, seen))
                    yield chunk

    async def tokenize(self, message: public.TokenizeRequest) -> public.TokenizeResponse:
        """Inference.Tokenize"""
        core = self._core
        core.validator.check_model(message.model)
        token_ids = await core.validator.tokenize(message.text, "text")
        tokens = [core.tokenizer.piece(token_id)[0] for token_id in token_ids] if core.tokenizer else []
        return public.TokenizeResponse(
            token_ids=token_ids, tokens=tokens, max_context_tokens=core.card.max_context_tokens
        )

    def list_models(self) -> public.ListModelsResponse:
        """Inference.ListModels"""
        card = self._core.card
        model = public.Model(
            name=card.name,
            architecture=card.architecture,
            max_context_tokens=card.max_context_tokens,
            has_tokenizer=self._core.tokenizer is not None,
        )
        return public.ListModelsResponse(models=[model])

    async def get_topology(self) -> public.Topology:
        """Cluster.GetTopology"""
        return public_topology(await self._fresh_topology())

    async def get_expert_load(self) -> public.ExpertLoad:
        """Cluster.GetExpertLoad"""
        return public_expert_load(await self._fresh_topology(), self._core.card.n_experts)

    async def scale(self, message: public.ScaleRequest) -> public.ScaleResponse:
        """Cluster.Scale"""
        before = await self._changes.scale(message.what, message.replicas)
        return public.ScaleResponse(replicas_before=before)

    async def rebalance(self) -> public.RebalanceResponse:
        """Cluster.Rebalance"""
        answer = await self._changes.rebalance()
        return public.RebalanceResponse(begun=answer.begun, imbalance=answer.imbalance)

    async def reload(self, message: public.ReloadRequest) -> public.ReloadResponse:
        """Cluster.Reload"""
        answer = await self._changes.reload(message.path)
        return public.ReloadResponse(version=answer.version, after_generation=answer.after_generation)

    async def check(self, message: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """grpc.health.v1.Health.Check: SERVING only when a generation can be served."""
        if message.service not in HEALTH_SERVICES:
            raise GatewayError(
                ErrorKind.MODEL_NOT_FOUND, f"service: {message.service!r} is unknown", "service"
            )
        return self._health()

    async def watch(
        self, message: health_pb2.HealthCheckRequest
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """grpc.health.v1.Health.Watch: the status now and whenever it changes."""
        if message.service not in HEALTH_SERVICES:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            return
        told = None
        while True:
            health = self._health()
            if health != told:
                told = health
                yield health
            await self._core.status_changed()

    def _health(self) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._core.healthy else status.NOT_SERVING)

    async def _validate(self, message: public.GenerateRequest, caller: Caller) -> GenerationRequest:
        n_bytes, most = message.ByteSize(), self._core.limits.max_body_bytes
        record = self._core.telemetry.begin("grpc", caller)
        with refusing(record):
            if n_bytes > most:
                raise GatewayError(
                    ErrorKind.TOO_LARGE, f"the message has {n_bytes} bytes, at most {most} are served"
                )
            return await self._core.validate(record.named(to_raw(message)))


def to_raw(message: public.GenerateRequest) -> RawRequest:
    """The request in the gateway's own form.

    Raises:
        GatewayError: there is no prompt.
    """
    kind = message.WhichOneof("input")
    if kind is None:
        raise invalid("input", "prompt or prompt_token_ids is required")
    prompt = message.prompt if kind == "prompt" else tuple(message.prompt_token_ids.ids)
    given = message.params

    names = {"prompt": kind} | {field: f"params.{field}" for field in RawParams.__dataclass_fields__}
    return RawRequest(
        prompts=(prompt,),
        params=RawParams(
            max_tokens=given.max_tokens if given.HasField("max_tokens") else None,
            temperature=given.temperature if given.HasField("temperature") else None,
            top_k=given.top_k,
            top_p=given.top_p if given.HasField("top_p") else None,
            min_p=given.min_p,
            repetition_penalty=given.repetition_penalty if given.HasField("repetition_penalty") else None,
            presence_penalty=given.presence_penalty,
            frequency_penalty=given.frequency_penalty,
            seed=given.seed if given.HasField("seed") else None,
            stop=tuple(given.stop),
            stop_token_ids=tuple(given.stop_token_ids),
            ignore_eos=given.ignore_eos,
            min_tokens=given.min_tokens,
            logprobs=given.logprobs if given.HasField("logprobs") else None,
            prompt_logprobs=given.prompt_logprobs if given.HasField("prompt_logprobs") else None,
            n=given.n if given.HasField("n") else None,
        ),
        model=message.model,
        request_id=message.request_id,
        names=names,
    )


def _completion(index: int, part: Delta | Completed, tokenizer: TextTokenizer | None) -> public.Completion:
    return public.Completion(
        index=index,
        text=part.text,
        token_ids=part.token_ids,
        logprobs=[_row(row, tokenizer) for row in part.logprobs],
        finish_reason=part.finish_reason or "",
        stop_reason="" if part.stop_reason is None else str(part.stop_reason),
    )


def _prompt_rows(
    request: GenerationRequest, rows: Sequence[LogprobRow], tokenizer: TextTokenizer | None
) -> list[public.TokenLogprobs]:
    if request.sampling[0].prompt_logprobs is None:
        return []
    return [public.TokenLogprobs(), *(_row(row, tokenizer) for row in rows)]


def _row(row: LogprobRow, tokenizer: TextTokenizer | None) -> public.TokenLogprobs:
    chosen, *top = [
        public.Logprob(
            token_id=token_id,
            logprob=logprob,
            rank=row.rank if position == 0 else position,
            token=tokenizer.piece(token_id)[0] if tokenizer else "",
        )
        for position, (token_id, logprob) in enumerate(zip(row.token_ids, row.logprobs, strict=True))
    ]
    return public.TokenLogprobs(chosen=chosen, top=top)


def _usage(request: GenerationRequest, spent: Spent) -> public.Usage:
    return public.Usage(
        prompt_tokens=request.n_prompt_tokens,
        completion_tokens=spent.tokens,
        accepted_prediction_tokens=spent.accepted_tokens,
        rejected_prediction_tokens=spent.rejected_tokens,
    )
