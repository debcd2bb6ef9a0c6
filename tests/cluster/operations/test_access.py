"""API keys on a running deployment: who gets in over HTTP and gRPC, and who does not."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import grpc
import openai
import pytest
import ray
from api_keys import entry
from serve_clients import Call
from serve_cluster import POLL_S, SETTLE_S, Deployment

from expertmesh.actors.coordinator_access import NAMESPACE, actor_name
from expertmesh.actors.gateway.access.keys import new_key
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

CALL = Call(prompt=(5, 6, 7), max_tokens=4)


def http_status(deployment: Deployment, path: str, **headers: str) -> int:
    request = urllib.request.Request(f"{deployment.http_url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SETTLE_S) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def rpc_code(deployment: Deployment, name: str, request: object) -> grpc.StatusCode:
    try:
        deployment.cluster_call(name, request)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_both_faces_serve_those_with_a_key(operated: Operated) -> None:
    async def ask() -> None:
        for deployment in (operated.user, operated.admin):
            async with deployment.clients() as clients:
                over_http = await clients.http_whole(CALL)
                over_grpc = await clients.grpc_whole(CALL)
                streamed = await clients.grpc_stream(CALL)
                assert len(over_http.token_ids) == CALL.max_tokens
                assert over_http.token_ids == over_grpc.token_ids == streamed.token_ids

    asyncio.run(ask())


def test_both_faces_refuse_those_without(operated: Operated) -> None:
    async def ask() -> None:
        async with operated.anonymous.clients() as clients:
            with pytest.raises(openai.AuthenticationError) as refused:
                await clients.http_whole(CALL)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.response.headers["www-authenticate"] == "Bearer"
            for call in (clients.grpc_whole, clients.grpc_stream):
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await call(CALL)
                assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(ask())
    assert rpc_code(operated.anonymous, "GetTopology", pb.GetTopologyRequest()) is (
        grpc.StatusCode.UNAUTHENTICATED
    )
    assert http_status(operated.anonymous, "/v1/topology") == 401
    assert http_status(operated.anonymous, "/v1/topology", **{"x-api-key": operated.user.key}) == 200
    assert http_status(operated.anonymous, "/health") == 200


def test_only_admins_change_the_cluster(operated: Operated) -> None:
    changes = (
        ("Scale", pb.ScaleRequest(what="experts", replicas=0)),
        ("Rebalance", pb.RebalanceRequest()),
        ("Reload", pb.ReloadRequest(path="relative")),
    )
    for name, request in changes:
        assert rpc_code(operated.user, name, request) is grpc.StatusCode.PERMISSION_DENIED
        assert rpc_code(operated.anonymous, name, request) is grpc.StatusCode.UNAUTHENTICATED
    # Let in, and told what is wrong with the request.
    assert rpc_code(operated.admin, "Scale", changes[0][1]) is grpc.StatusCode.FAILED_PRECONDITION
    assert rpc_code(operated.admin, "Reload", changes[2][1]) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_key_that_is_taken_away_gets_nothing_new_and_what_it_has_begun(operated: Operated) -> None:
    key = new_key()
    guest = Deployment(**{**vars(operated.user), "key": key})
    long = pb.GenerateRequest(
        prompt_token_ids=pb.TokenIds(ids=[5, 6, 7]),
        params=pb.SamplingParams(max_tokens=400, ignore_eos=True),
    )
    operated.write_keys(entry(key, name="guest"))
    until_code(guest, grpc.StatusCode.OK)
    with grpc.insecure_channel(guest.grpc_address) as channel:
        stream = rpc.InferenceStub(channel).GenerateStream(long, timeout=SETTLE_S, metadata=guest.metadata)
        n_tokens = len(next(stream).delta.token_ids)
        operated.write_keys()
        until_code(guest, grpc.StatusCode.UNAUTHENTICATED)
        n_tokens += sum(len(chunk.delta.token_ids) for chunk in stream)
    assert n_tokens == 400
    assert rpc_code(operated.user, "GetTopology", pb.GetTopologyRequest()) is grpc.StatusCode.OK


def test_a_key_over_its_limit_is_told_when_to_come_back(operated: Operated) -> None:
    key = new_key()
    guest = Deployment(**{**vars(operated.user), "key": key})
    operated.write_keys(entry(key, name="slow", limits={"requests_per_minute": 1}))
    until_code(guest, grpc.StatusCode.OK)

    async def ask() -> None:
        async with guest.clients() as clients:
            await clients.grpc_whole(CALL)
            with pytest.raises(openai.RateLimitError) as over_http:
                await clients.http_whole(CALL)
            assert over_http.value.code == "rate_limit_exceeded"
            told_s = [over_http.value.response.headers["retry-after"]]
            for call in (clients.grpc_whole, clients.grpc_stream):
                with pytest.raises(grpc.aio.AioRpcError, match="requests a minute") as over_grpc:
                    await call(CALL)
                assert over_grpc.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                # Serve passes on what stands behind a whole answer, and not behind a broken stream.
                in_words = re.search(r"try again in (\d+) s", over_grpc.value.details() or "")
                behind = dict(over_grpc.value.trailing_metadata() or ()).get("retry-after")
                told_s += [behind if call == clients.grpc_whole else in_words and in_words.group(1)]
            assert all(told is not None and 0 < int(told) <= 60 for told in told_s), told_s

    asyncio.run(ask())
    operated.write_keys()


def until_code(deployment: Deployment, wanted: grpc.StatusCode) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while rpc_code(deployment, "GetTopology", pb.GetTopologyRequest()) is not wanted:
        assert time.monotonic() < deadline_s, f"not {wanted} within {SETTLE_S:g} s"
        time.sleep(POLL_S)


def test_no_key_no_hash_and_no_secret_stands_in_what_the_dashboard_shows(operated: Operated) -> None:
    headers = {"Authorization": f"Bearer {operated.dashboard_token}"} if operated.dashboard_token else {}

    def shown(path: str) -> str:
        request = urllib.request.Request(f"{operated.admin.dashboard_url}{path}", None, headers)
        with urllib.request.urlopen(request, timeout=SETTLE_S) as response:
            text: str = response.read().decode()
            return text

    applications = shown("/api/serve/applications/")
    assert "operated" in json.loads(applications)["applications"]
    actors = shown("/api/v0/actors?detail=true&limit=1000")
    assert actor_name("operated") in actors
    coordinator = ray.get_actor(actor_name("operated"), namespace=NAMESPACE)
    _, drawn = ray.get(coordinator.entrance.remote(), timeout=SETTLE_S)
    assert len(drawn) >= 32
    secret_file = operated.admin.config.security.cluster_secret_file
    secrets = [drawn, secret_file.read_text()]
    for key in (operated.admin.key, operated.user.key):
        secrets += [key, entry(key)["hash"].removeprefix("sha256:")]
    tasks = shown("/api/v0/tasks?detail=true&limit=1000")
    for text in (applications, actors, tasks, shown("/logical/actors")):
        assert not any(secret in text for secret in secrets)
