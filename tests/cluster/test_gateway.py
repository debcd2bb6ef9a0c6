"""The gateway on a real Serve: real clients, the demo checkpoint, one router that holds its experts."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serve_cluster import Deployment, ServeCluster

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

LONG_TOKENS = 1900
GREEDY = {"temperature": 0.0, "ignore_eos": True}


class ForApplication(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Tells Serve's gRPC proxy in every call which application is meant."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)

    intercept_unary_stream = intercept_unary_unary


class Clients:
    """A running deployment and its clients."""

    def __init__(self, deployment: Deployment) -> None:
        self._url = deployment.http_url
        self.until_quiet = deployment.until_quiet
        self.channel = grpc.insecure_channel(deployment.grpc_address)
        to_application = grpc.intercept_channel(self.channel, ForApplication(deployment.metadata))
        self.inference = rpc.InferenceStub(to_application)
        self.cluster = rpc.ClusterStub(to_application)
        self.health = health_pb2_grpc.HealthStub(to_application)
        self.openai = openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=60)

    def close(self) -> None:
        self.openai.close()
        self.channel.close()

    def get(self, path: str) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(self._url + path, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")


@pytest.fixture(scope="module")
def deployment(cluster: ServeCluster, demo_config: Callable[..., DeploymentConfig]) -> Iterator[Clients]:
    config = demo_config(
        "name=gateway-test",
        "experts.replicas=0",
        "limits.request_timeout_s=60",
        "limits.max_queued_requests=64",
    )
    with cluster.deploy(config) as [running], contextlib.closing(Clients(running)) as clients:
        yield clients


def request(prompt: str = "The database", n_tokens: int = 8, **params) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=n_tokens, temperature=0.0, ignore_eos=True, **params)
    return pb.GenerateRequest(prompt=prompt, params=sampling)


def test_both_faces_give_the_same_tokens(deployment):
    whole = deployment.inference.Generate(request(n_tokens=12))
    [completion] = whole.completions
    chunks = list(deployment.inference.GenerateStream(request(n_tokens=12)))
    assert [t for chunk in chunks for t in chunk.delta.token_ids] == list(completion.token_ids)
    assert "".join(chunk.delta.text for chunk in chunks) == completion.text
    assert chunks[-1].usage == whole.usage
    over_http = deployment.openai.completions.create(
        model="expertmesh-demo",
        prompt=list(whole.prompt_token_ids),
        max_tokens=12,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert over_http.choices[0].text == completion.text
    assert over_http.choices[0].token_ids == list(completion.token_ids)
    stream = deployment.openai.completions.create(
        model="expertmesh-demo", prompt="The database", max_tokens=12, stream=True, extra_body=GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == completion.text


def test_chat_answers(deployment):
    answer = deployment.openai.chat.completions.create(
        model="expertmesh-demo", messages=[{"role": "user", "content": "What is SQL?"}], max_tokens=8
    )
    assert answer.usage.completion_tokens > 0
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_status_codes_and_fields_over_the_wire(deployment):
    inference = deployment.inference
    cases = [
        (inference.Generate, request(n_tokens=0), grpc.StatusCode.INVALID_ARGUMENT, "params.max_tokens"),
        (inference.Generate, request(prompt=""), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (inference.Generate, request(n=65), grpc.StatusCode.INVALID_ARGUMENT, "params.n"),
        (inference.Generate, pb.GenerateRequest(model="x", prompt="y"), grpc.StatusCode.NOT_FOUND, "model"),
        (inference.Tokenize, pb.TokenizeRequest(model="x"), grpc.StatusCode.NOT_FOUND, "model"),
    ]
    for call, message, code, field in cases:
        with pytest.raises(grpc.RpcError) as caught:
            call(message)
        assert (caught.value.code(), caught.value.details().split(":")[0]) == (code, field)
    with pytest.raises(grpc.RpcError) as caught:
        list(inference.GenerateStream(request(top_k=-9)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "params.top_k" in caught.value.details()


def test_a_full_queue_is_refused_on_both_faces(deployment):
    streams = [deployment.inference.GenerateStream(request(n_tokens=LONG_TOKENS, n=16)) for _ in range(4)]
    for stream in streams:
        next(stream)
    with pytest.raises(grpc.RpcError) as caught:
        deployment.inference.Generate(request())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(openai.RateLimitError, match="queue is full"):
        deployment.openai.completions.create(model="expertmesh-demo", prompt="x")
    for stream in streams:
        stream.cancel()
    deployment.until_quiet()
    deployment.inference.Generate(request())


def test_deadlines_reach_the_engine(deployment):
    with pytest.raises(grpc.RpcError) as caught:
        deployment.inference.Generate(request(n_tokens=LONG_TOKENS), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as caught:
        list(deployment.inference.GenerateStream(request(n_tokens=LONG_TOKENS), timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    deployment.until_quiet()


def test_many_streams_a_third_cancelled_leave_nothing_behind(deployment):
    random_ = random.Random(5)
    whole: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def over_grpc(n_tokens: int) -> Iterator[int]:
        stream = deployment.inference.GenerateStream(request(n_tokens=n_tokens))
        try:
            for chunk in stream:
                yield len(chunk.delta.token_ids)
        finally:
            stream.cancel()

    def over_http(n_tokens: int) -> Iterator[int]:
        body = {**GREEDY, "return_token_ids": True}
        with deployment.openai.completions.create(
            model="expertmesh-demo", prompt="x", max_tokens=n_tokens, stream=True, extra_body=body
        ) as stream:
            for chunk in stream:
                yield len(chunk.choices[0].token_ids)

    def client(face, n_tokens: int, stop_after: int | None) -> None:
        try:
            n_seen = 0
            stream = face(n_tokens)
            for n_new in stream:
                n_seen += n_new
                if stop_after is not None and n_seen > stop_after:
                    stream.close()
                    return
            whole.append((n_tokens, n_seen))
        except BaseException as error:
            failures.append(error)

    n_before = computed_tokens(deployment)
    threads = []
    for i in range(48):
        face = over_grpc if i % 2 else over_http
        cancelled = i % 3 == 0
        n_tokens = LONG_TOKENS if cancelled else random_.randint(5, 60)
        stop_after = random_.randint(0, 30) if cancelled else None
        threads.append(threading.Thread(target=client, args=(face, n_tokens, stop_after)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert len(whole) == 32
    assert all(n_seen == n_tokens for n_tokens, n_seen in whole)
    deployment.until_quiet()
    # Had the cancelled ones run on, they would have cost 16 times LONG_TOKENS.
    assert computed_tokens(deployment) - n_before < 5 * LONG_TOKENS


def computed_tokens(deployment) -> int:
    """Tokens that the router has computed since its start, once its figure stands still."""
    seen = -1
    while (now := deployment.cluster.GetTopology(pb.GetTopologyRequest()).routers[0].tokens) != seen:
        seen = now
        time.sleep(1.5)  # routers tell their figure once a second
    return seen


def test_models_tokenize_topology_and_load(deployment):
    [model] = deployment.inference.ListModels(pb.ListModelsRequest()).models
    assert (model.name, model.has_tokenizer) == ("expertmesh-demo", True)
    tokens = deployment.inference.Tokenize(pb.TokenizeRequest(text="Hello"))
    assert len(tokens.token_ids) == len(tokens.tokens) > 0
    status, topology = deployment.get("/v1/topology")
    shown = deployment.cluster.GetTopology(pb.GetTopologyRequest())
    assert status == 200
    assert topology["generation"] == shown.generation > 0
    assert [r["pid"] for r in topology["routers"]] == [shown.routers[0].pid]
    assert topology["routers"][0]["tokens"] > 0
    assert topology["experts"] == []
    load = deployment.cluster.GetExpertLoad(pb.GetExpertLoadRequest())
    assert len(load.layers) == 5
    assert all(sum(layer.tokens) > 0 for layer in load.layers)


def test_health_and_reflection(deployment):
    health = deployment.health.Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    watch = deployment.health.Watch(health_pb2.HealthCheckRequest(service="expertmesh.v1.Inference"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    services = set(ProtoReflectionDescriptorDatabase(deployment.channel).get_services())
    assert {"expertmesh.v1.Inference", "expertmesh.v1.Cluster", "grpc.health.v1.Health"} <= services
