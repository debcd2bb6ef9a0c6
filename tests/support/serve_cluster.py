"""A real Ray cluster with Serve for tests, and the deployments on it as their clients see them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from expertmesh.actors.app import build_app
from expertmesh.actors.coordinator import coordinator_address, stop_coordinator
from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc
from expertmesh.proto.v1 import internal_pb2 as internal
from expertmesh.proto.v1 import internal_pb2_grpc as internal_rpc

START_S = 180.0
SETTLE_S = 60.0
CALL_S = 180.0
POLL_S = 0.1
OBJECT_STORE_BYTES = 128 << 20


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
    times_s: list[float] = field(default_factory=list)


class Clients:
    """The clients that users have, in one event loop."""

    def __init__(self, deployment: Deployment) -> None:
        self._metadata = deployment.metadata
        self._channel = grpc.aio.insecure_channel(deployment.grpc_address)
        self.inference = rpc.InferenceStub(self._channel)
        self.openai = openai.AsyncOpenAI(
            base_url=f"{deployment.http_url}/v1", api_key="none", max_retries=0, timeout=CALL_S
        )

    async def close(self) -> None:
        await self.openai.close()
        await self._channel.close()

    async def grpc_whole(self, call: Call) -> Answer:
        """Inference.Generate"""
        whole = await self.inference.Generate(_request(call), timeout=CALL_S, metadata=self._metadata)
        [completion] = whole.completions
        answer = Answer(finish_reason=completion.finish_reason)
        _take(answer, completion, whole.prompt_logprobs)
        return answer

    async def grpc_stream(self, call: Call, on_tokens: Callable[[int], bool] = lambda n: True) -> Answer:
        """Inference.GenerateStream, cancelled as soon as `on_tokens` (told how many there are) is False."""
        answer = Answer()
        stream = self.inference.GenerateStream(_request(call), timeout=CALL_S, metadata=self._metadata)
        async for chunk in stream:
            answer.times_s.append(time.monotonic())
            _take(answer, chunk.delta, chunk.prompt_logprobs)
            if not on_tokens(len(answer.token_ids)):
                stream.cancel()
                break
        return answer

    async def http_whole(self, call: Call) -> Answer:
        """POST /v1/completions"""
        whole = await self.openai.completions.create(**_body(call))
        answer = Answer()
        _take_choice(answer, whole.choices[0])
        return answer

    async def http_stream(self, call: Call, on_tokens: Callable[[int], bool] = lambda n: True) -> Answer:
        """POST /v1/completions with stream, closed as soon as `on_tokens` is False."""
        answer = Answer()
        stream = await self.openai.completions.create(**_body(call), stream=True)
        async with stream:
            async for chunk in stream:
                answer.times_s.append(time.monotonic())
                _take_choice(answer, chunk.choices[0])
                if not on_tokens(len(answer.token_ids)):
                    break
        return answer


@dataclass(frozen=True)
class Deployment:
    """An application on the cluster."""

    config: DeploymentConfig
    http_url: str
    grpc_address: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Tells Serve's gRPC proxy which application is meant."""
        return (("application", self.config.name),)

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[Clients]:
        """Clients for the running event loop."""
        clients = Clients(self)
        try:
            yield clients
        finally:
            await clients.close()

    def topology(self) -> pb.Topology:
        """Cluster.GetTopology"""
        with grpc.insecure_channel(self.grpc_address) as channel:
            return rpc.ClusterStub(channel).GetTopology(
                pb.GetTopologyRequest(), timeout=10, metadata=self.metadata
            )

    def until_quiet(self) -> None:
        """Waits until no request is open at any gateway, as the coordinator is told."""
        with grpc.insecure_channel(coordinator_address(self.config.name)) as channel:
            coordinator = internal_rpc.CoordinatorStub(channel)
            deadline_s = time.monotonic() + SETTLE_S
            while n := coordinator.GetState(internal.GetStateRequest(), timeout=10).outstanding_requests:
                assert time.monotonic() < deadline_s, f"{n} requests are still open"
                time.sleep(POLL_S)

    def until(
        self, condition: Callable[[pb.Topology], bool], what: str, timeout_s: float = SETTLE_S
    ) -> pb.Topology:
        """The first topology for which the condition holds."""
        deadline_s = time.monotonic() + timeout_s
        topology = None
        while time.monotonic() < deadline_s:
            with contextlib.suppress(grpc.RpcError):
                topology = self.topology()
                if condition(topology):
                    return topology
            time.sleep(POLL_S)
        raise AssertionError(f"{self.config.name}: {what}: not within {timeout_s:g} s; last: {topology}")

    def until_complete(self, above: int = 0, timeout_s: float = START_S) -> pb.Topology:
        """Waits for a generation with a higher number than `above` that has every member."""
        wanted = (self.config.router.replicas, self.config.experts.replicas)

        def complete(topology: pb.Topology) -> bool:
            members = (len(topology.routers), len(topology.experts))
            return topology.state == "running" and topology.generation > above and members == wanted

        return self.until(complete, f"a generation of {wanted}", timeout_s)

    def replica_pids(self, deployment_name: str) -> list[int]:
        """Operating-system processes of a Serve deployment's replicas."""
        prefix = f"SERVE_REPLICA::{self.config.name}#{deployment_name}#"
        return [pid_of(name, "serve") for name in actor_names("serve") if name.startswith(prefix)]


class ServeCluster:
    """A local Ray cluster with Serve, for as many deployments as a test wants beside each other."""

    def __init__(self) -> None:
        ray.init(
            address="local",
            num_cpus=64,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
        http_port, grpc_port = free_ports(2)
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=http_port),
            grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=list(SERVICER_FUNCTIONS)),
            logging_config={"log_level": "WARNING"},
        )
        self._http_url = f"http://127.0.0.1:{http_port}"
        self._grpc_address = f"127.0.0.1:{grpc_port}"

    def close(self) -> None:
        """Ends every process of the cluster."""
        serve.shutdown()
        ray.shutdown()

    @contextlib.contextmanager
    def deploy(self, *configs: DeploymentConfig) -> Iterator[list[Deployment]]:
        """Runs applications side by side until the end of the block."""
        targets = [
            serve.RunTarget(
                target=build_app(config),
                name=config.name,
                route_prefix=f"/{config.name}",
                external_scaler_enabled=True,
            )
            for config in configs
        ]
        deployments = [Deployment(c, f"{self._http_url}/{c.name}", self._grpc_address) for c in configs]
        try:
            serve.run_many(targets, wait_for_applications_running=False)
            for deployment in deployments:
                deployment.until_complete()
            yield deployments
        finally:
            names = [config.name for config in configs]
            for name in names:
                serve.delete(name, _blocking=False)
            _until_deleted(names)
            for name in names:
                stop_coordinator(name)


def random_prompt(length: int, vocab_size: int, seed: int) -> tuple[int, ...]:
    """Token ids without the first two, which stand for the borders of texts."""
    numbers = random.Random(seed)
    return tuple(numbers.randrange(2, vocab_size) for _ in range(length))


def free_ports(n: int) -> list[int]:
    """TCP ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(n)]
        for holder in holders:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in holders]


def actor_names(namespace: str) -> list[str]:
    """Named actors of a namespace."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == namespace]


def pid_of(actor_name: str, namespace: str) -> int:
    """The process of a named actor."""
    actor = ray.get_actor(actor_name, namespace=namespace)
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=SETTLE_S)
    return pid


def cpu_s(pid: int) -> float:
    """User and system seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _until_deleted(names: Sequence[str]) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while left := serve.status().applications.keys() & set(names):
        assert time.monotonic() < deadline_s, f"Serve is still deleting {sorted(left)}"
        time.sleep(POLL_S)


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


def _take_choice(answer: Answer, choice: Any) -> None:
    answer.token_ids.extend(choice.token_ids)
    if choice.logprobs is not None:
        answer.logprobs.extend(choice.logprobs.token_logprobs)
    for row in (getattr(choice, "prompt_logprobs", None) or [])[1:]:
        # The prompt's own token stands first.
        answer.prompt_logprobs.append(next(iter(row.values()))["logprob"])
    answer.finish_reason = choice.finish_reason or answer.finish_reason
