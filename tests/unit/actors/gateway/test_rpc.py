"""The gRPC face: public messages in and out (the wire itself is tried on a real Serve)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.errors import GatewayError
from expertmesh.actors.gateway.rpc import GRPC_CODE, RpcFace
from expertmesh.cluster.control import CoordinatorUnavailableError
from expertmesh.cluster.scaling import InvalidScaleError, RebalanceRefusedError, ScaleRefusedError
from expertmesh.configs.schema import LimitsConfig
from expertmesh.models.errors import CheckpointError
from expertmesh.proto.v1 import inference_pb2 as public

pytestmark = pytest.mark.anyio

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def no_check(path: Path) -> None:
    pass


def face_of(core, control=None, check_weights: Callable[[Path], None] = no_check) -> RpcFace:
    async def fresh():
        return core.topology

    return RpcFace(core, fresh, ClusterChanges(control, check_weights))


def ids(*token_ids: int) -> public.TokenIds:
    return public.TokenIds(ids=token_ids)


async def test_generate_answers_once_with_everything(gateway, tokenizer, says):
    router = await gateway.router(says("Hi 世"))
    face = face_of(await gateway.serving(router, tokenizer=tokenizer))
    params = public.SamplingParams(max_tokens=50, n=2, logprobs=1, prompt_logprobs=0, seed=4)
    answer = await face.generate(public.GenerateRequest(prompt="ab", params=params, request_id="mine"))
    assert answer.request_id == "mine"
    assert answer.model == "tiny"
    assert tokenizer.decode(answer.prompt_token_ids) == "ab"
    assert [completion.text for completion in answer.completions] == ["Hi 世"] * 2
    assert [completion.finish_reason for completion in answer.completions] == ["stop"] * 2
    n_output = len("Hi 世".encode()) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2 * n_output)
    first = answer.completions[0].logprobs[0]
    assert (first.chosen.token, first.chosen.logprob, first.chosen.rank) == ("H", -0.5, 1)
    assert [entry.token_id for entry in first.top] == [0]
    assert len(answer.prompt_logprobs) == 3
    assert not answer.prompt_logprobs[0].HasField("chosen")
    assert answer.prompt_logprobs[1].chosen.rank == 7


async def test_a_stream_gives_the_prompt_first_and_the_usage_last(gateway):
    router = await gateway.router()
    face = face_of(await gateway.serving(router))
    params = public.SamplingParams(max_tokens=5, n=2)
    request = public.GenerateRequest(prompt_token_ids=ids(5, 6), params=params)
    chunks = [chunk async for chunk in face.generate_stream(request)]
    assert [list(chunk.prompt_token_ids) for chunk in chunks if chunk.prompt_token_ids] == [[5, 6]]
    assert chunks[0].prompt_token_ids
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == 10
    for index in range(2):
        tokens = [t for c in chunks if c.delta.index == index for t in c.delta.token_ids]
        assert tokens == [13, 14, 15, 16, 17]
    assert len({chunk.request_id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (public.GenerateRequest(), "input"),
        (public.GenerateRequest(prompt="text"), "prompt"),
        (public.GenerateRequest(prompt_token_ids=ids()), "prompt_token_ids"),
        (public.GenerateRequest(prompt_token_ids=ids(1), params=public.SamplingParams(n=0)), "params.n"),
        (
            public.GenerateRequest(prompt_token_ids=ids(1), params=public.SamplingParams(max_tokens=0)),
            "params.max_tokens",
        ),
        (
            public.GenerateRequest(prompt_token_ids=ids(1), params=public.SamplingParams(top_k=-3)),
            "params.top_k",
        ),
    ],
)
async def test_refusals_name_the_field_of_the_message(gateway, request_, field):
    face = face_of(gateway.core())
    with pytest.raises(GatewayError) as caught:
        await face.generate(request_)
    assert caught.value.field == field


async def test_a_message_larger_than_the_limit_is_refused(gateway):
    face = face_of(gateway.core(limits=LimitsConfig(max_body_bytes=1024)))
    with pytest.raises(GatewayError, match="at most 1024 are served"):
        await face.generate(public.GenerateRequest(prompt="x" * 2000))


async def test_tokenize_and_models(gateway, tokenizer):
    face = face_of(gateway.core(tokenizer=tokenizer))
    answer = await face.tokenize(public.TokenizeRequest(text="hé"))
    assert answer.token_ids == list(tokenizer.encode("hé"))
    assert list(answer.tokens) == ["<bos>", "h", "\ufffd", "\ufffd"]
    assert answer.max_context_tokens == 4096
    [model] = face.list_models().models
    assert (model.name, model.architecture, model.has_tokenizer) == ("tiny", "TinyForCausalLM", True)
    with pytest.raises(GatewayError, match="not served"):
        await face.tokenize(public.TokenizeRequest(text="x", model="other"))


async def test_topology_and_expert_load(gateway, topology):
    router = await gateway.router()
    core = await gateway.serving(router)
    face = face_of(core)
    shown = await face.get_topology()
    assert (shown.generation, shown.state) == (1, "running")
    assert [(member.rank, member.pid) for member in [*shown.routers, *shown.experts]] == [
        (0, 100),
        (1, 200),
    ]
    assert [list(host.experts) for host in shown.placement[0].hosts] == [[0, 1]]
    load = await face.get_expert_load()
    assert [list(layer.tokens) for layer in load.layers] == [[1, 2], [3, 4]]
    core.on_topology(topology(router, state="forming"))
    shown = await face.get_topology()
    assert (shown.generation, list(shown.routers), shown.state) == (0, [], "forming")


async def test_scale_and_rebalance_reach_the_coordinator(gateway, control):
    face = face_of(gateway.core(), control)
    answer = await face.scale(public.ScaleRequest(what="routers", replicas=2))
    assert (answer.replicas_before, control.asked) == (1, [("router", 2)])
    rebalanced = await face.rebalance()
    assert (rebalanced.begun, rebalanced.imbalance) == (True, 1.5)
    with pytest.raises(GatewayError, match="what: must be one of routers, experts, not 'gateway'"):
        await face.scale(public.ScaleRequest(what="gateway", replicas=2))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidScaleError("why"), grpc.StatusCode.INVALID_ARGUMENT),
        (ScaleRefusedError("why"), grpc.StatusCode.FAILED_PRECONDITION),
        (RebalanceRefusedError("why"), grpc.StatusCode.FAILED_PRECONDITION),
        (CoordinatorUnavailableError("why"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_refusals_of_the_coordinator_have_their_codes(gateway, control, error, code):
    control.error = error
    face = face_of(gateway.core(), control)
    for call in (
        face.scale(public.ScaleRequest(what="experts", replicas=2)),
        face.rebalance(),
        face.reload(public.ReloadRequest(path="/new")),
    ):
        with pytest.raises(GatewayError, match="why") as caught:
            await call
        assert GRPC_CODE[caught.value.kind] is code


async def test_reload_is_checked_and_handed_on(gateway, control):
    face = face_of(gateway.core(), control)
    answer = await face.reload(public.ReloadRequest(path="/new"))
    assert (answer.version, answer.after_generation, control.asked) == (2, 7, [("/new", 0)])
    with pytest.raises(GatewayError, match="must be absolute") as caught:
        await face.reload(public.ReloadRequest(path="new"))
    assert GRPC_CODE[caught.value.kind] is grpc.StatusCode.INVALID_ARGUMENT

    def refuse(path: Path) -> None:
        raise CheckpointError(path, "another architecture")

    face = face_of(gateway.core(), control, refuse)
    with pytest.raises(GatewayError, match="another architecture") as caught:
        await face.reload(public.ReloadRequest(path="/other"))
    assert GRPC_CODE[caught.value.kind] is grpc.StatusCode.FAILED_PRECONDITION
    assert len(control.asked) == 1


async def test_health_follows_the_generation(gateway, topology):
    router = await gateway.router()
    core = await gateway.serving(router)
    face = face_of(core)
    asked = health_pb2.HealthCheckRequest(service="expertmesh.v1.Inference")
    assert (await face.check(asked)).status == SERVING
    watch = face.watch(asked)
    assert (await anext(watch)).status == SERVING
    change = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    core.on_topology(topology(router))  # nothing new to tell
    core.on_topology(topology(router, state="forming"))
    assert (await asyncio.wait_for(change, 5)).status == NOT_SERVING
    with pytest.raises(GatewayError, match="unknown"):
        await face.check(health_pb2.HealthCheckRequest(service="other"))
