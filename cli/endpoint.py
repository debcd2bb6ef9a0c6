"""A gRPC connection to a deployment's public face."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
"""A deployment that is just starting is found soon after it listens."""
USAGE_CODES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


class Endpoint:
    """The stubs of one address; errors of its calls become `CliError`.

    Args:
        address: HOST:PORT of Serve's gRPC proxy.
        app: the Serve application, needed where the proxy serves several.
        key: the API key, needed where the deployment asks for one.
    """

    def __init__(self, address: str, app: str | None = None, key: str = "") -> None:
        self.address = address
        application = (("application", app),) if app else ()
        self._metadata = (*application, *((("authorization", f"Bearer {key}"),) if key else ()))
        self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        self._inference = rpc.InferenceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._cluster = rpc.ClusterStub(self._channel)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def healthy(self, timeout_s: float) -> bool:
        """Whether a request can be generated now, as far as the endpoint can be asked."""
        try:
            answer = self._call(self._health.Check, health_pb2.HealthCheckRequest(), timeout_s)
        except CliError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def topology(self, timeout_s: float) -> pb.Topology:
        """The live generation and its members."""
        topology: pb.Topology = self._call(self._cluster.GetTopology, pb.GetTopologyRequest(), timeout_s)
        return topology

    def models(self, timeout_s: float) -> list[pb.Model]:
        """The served models."""
        return list(self._call(self._inference.ListModels, pb.ListModelsRequest(), timeout_s).models)

    def scale(self, what: str, n_replicas: int, timeout_s: float) -> int:
        """Sets how many `routers` or `experts` serve; gives how many were wanted before."""
        request = pb.ScaleRequest(what=what, replicas=n_replicas)
        answer: pb.ScaleResponse = self._call(self._cluster.Scale, request, timeout_s)
        return answer.replicas_before

    def rebalance(self, timeout_s: float) -> pb.RebalanceResponse:
        """Has experts moved until their hosts have even load."""
        answer: pb.RebalanceResponse = self._call(self._cluster.Rebalance, pb.RebalanceRequest(), timeout_s)
        return answer

    def reload(self, path: str, timeout_s: float) -> pb.ReloadResponse:
        """Has another checkpoint of the same architecture served."""
        answer: pb.ReloadResponse = self._call(self._cluster.Reload, pb.ReloadRequest(path=path), timeout_s)
        return answer

    def generate(self, request: pb.GenerateRequest, timeout_s: float) -> Iterator[pb.GenerateChunk]:
        """A generation's chunks as they come; closing the iterator cancels it."""
        with self._errors():
            call = self._inference.GenerateStream(request, timeout=timeout_s, metadata=self._metadata)
            try:
                yield from call
            finally:
                call.cancel()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        with self._errors():
            return method(request, timeout=timeout_s, metadata=self._metadata)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            exit_code = EXIT_USAGE if code in USAGE_CODES else EXIT_FAILED
            raise CliError(f"{self.address}: {code.name}: {details}", exit_code) from error
