"""What gateways ask the coordinator, over the connection that their stream holds."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from expertmesh.cluster.scaling import (
    InvalidScaleError,
    RebalanceRefusedError,
    ReloadRefusedError,
    ScaleRefusedError,
)
from expertmesh.cluster.trust.trust import CONTROL, UNGUARDED, Trust
from expertmesh.proto.v1 import internal_pb2 as pb


class CoordinatorUnavailableError(ConnectionError):
    """There is no stream to the coordinator at the moment; it is being looked for."""


class ControlClient:
    """Calls of internal.v1.Coordinator; whoever keeps the connection sets stub and address."""

    def __init__(self, trust: Trust = UNGUARDED) -> None:
        self._trust = trust
        self._address = ""
        """Of the coordinator that the stub is connected to."""
        self._stub: Any = None
        """None while there is no connection."""

    async def get_state(self, timeout_s: float = 5.0) -> pb.TopologyUpdate:
        """Asks the coordinator for the deployment's state with fresh load figures.

        Raises CoordinatorUnavailableError when there is no coordinator or it does not answer in time.
        """
        try:
            update: pb.TopologyUpdate = await self._ask("GetState", pb.GetStateRequest(), timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CoordinatorUnavailableError(
                f"the coordinator did not tell its state within {timeout_s:g} s: {error.details()}"
            ) from error
        return update

    async def scale(self, deployment: str, n_replicas: int, timeout_s: float = 30.0) -> int:
        """Sets how many replicas a deployment is to have; gives how many it was to have before.

        Raises:
            ScaleRefusedError: it cannot have so many; nothing has changed.
            CoordinatorUnavailableError: neither the coordinator nor, through it, Serve can be asked now.
        """
        request = pb.ScaleRequest(deployment=deployment, replicas=n_replicas)
        try:
            answer: pb.ScaleResponse = await self._ask("Scale", request, timeout_s)
        except grpc.aio.AioRpcError as error:
            match error.code():
                case grpc.StatusCode.INVALID_ARGUMENT:
                    raise InvalidScaleError(error.details()) from error
                case grpc.StatusCode.FAILED_PRECONDITION:
                    raise ScaleRefusedError(error.details()) from error
            raise CoordinatorUnavailableError(f"cannot scale: {error.details()}") from error
        return int(answer.replicas_before)

    async def rebalance(self, timeout_s: float = 30.0) -> pb.RebalanceResponse:
        """Has experts moved until their hosts have even load.

        Raises:
            RebalanceRefusedError: there is no load to go by.
            CoordinatorUnavailableError: the coordinator cannot be asked now.
        """
        try:
            answer: pb.RebalanceResponse = await self._ask("Rebalance", pb.RebalanceRequest(), timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise RebalanceRefusedError(error.details()) from error
            raise CoordinatorUnavailableError(f"cannot rebalance: {error.details()}") from error
        return answer

    async def reload(self, path: str, timeout_s: float = 30.0) -> pb.ReloadResponse:
        """Has other weights loaded beside those that are served.

        Raises:
            ReloadRefusedError: not now; nothing has changed.
            CoordinatorUnavailableError: the coordinator cannot be asked now.
        """
        try:
            answer: pb.ReloadResponse = await self._ask("Reload", pb.ReloadRequest(path=path), timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise ReloadRefusedError(error.details()) from error
            raise CoordinatorUnavailableError(f"cannot reload: {error.details()}") from error
        return answer

    async def _ask(self, method: str, request: Any, timeout_s: float) -> Any:
        if self._stub is None:
            raise CoordinatorUnavailableError("there is no stream to the coordinator")
        metadata = self._trust.metadata(CONTROL + method, self._address)
        return await getattr(self._stub, method)(request, timeout=timeout_s, metadata=metadata)
