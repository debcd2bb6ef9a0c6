"""What clients may change in the cluster, whichever face they ask: scale, rebalance, reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from expertmesh.actors.gateway.errors import ErrorKind, GatewayError, invalid
from expertmesh.cluster.control import CoordinatorUnavailableError
from expertmesh.cluster.scaling import InvalidScaleError, RefusedError
from expertmesh.models.errors import CheckpointError
from expertmesh.proto.v1 import internal_pb2 as pb

SCALED = {"routers": "router", "experts": "experts"}
"""What clients scale, and the deployment that it is."""


class ClusterControl(Protocol):
    """What the gateway asks the coordinator to change (`cluster.member.MemberClient`)."""

    async def scale(self, deployment: str, n_replicas: int) -> int:
        """Sets how many replicas a deployment is to have; gives how many it was to have before."""

    async def rebalance(self) -> pb.RebalanceResponse:
        """Has experts moved until their hosts have even load."""

    async def reload(self, path: str) -> pb.ReloadResponse:
        """Has other weights loaded beside those that are served."""


class ClusterChanges:
    """Asks the coordinator; what it answers becomes the gateway's errors.

    Args:
        cluster: the way to the coordinator.
        check_weights: raises CheckpointError when the checkpoint in a directory cannot take the place of
            the served one; reads files.
    """

    def __init__(self, cluster: ClusterControl, check_weights: Callable[[Path], object]) -> None:
        self._cluster = cluster
        self._check_weights = check_weights

    async def scale(self, what: str, n_replicas: int, field: str = "what") -> int:
        """Sets how many `routers` or `experts` there are to be; gives how many there were to be before.

        `field` is what the client calls the first of the two.

        Raises:
            GatewayError: INVALID or REFUSED, nothing has changed; UNAVAILABLE.
        """
        deployment = SCALED.get(what)
        if deployment is None:
            raise invalid(field, f"must be one of {', '.join(SCALED)}, not {what!r}")
        with _cluster_errors("replicas"):
            return await self._cluster.scale(deployment, n_replicas)

    async def rebalance(self) -> pb.RebalanceResponse:
        """Moves and copies experts until the load is even.

        Raises:
            GatewayError: REFUSED, UNAVAILABLE.
        """
        with _cluster_errors():
            return await self._cluster.rebalance()

    async def reload(self, path: str) -> pb.ReloadResponse:
        """Serves other weights of the same architecture from now on.

        Raises:
            GatewayError: INVALID or REFUSED, nothing has changed; UNAVAILABLE.
        """
        if not Path(path).is_absolute():
            raise invalid("path", f"must be absolute, as every node looks it up, not {path!r}")
        try:
            await asyncio.to_thread(self._check_weights, Path(path))
        except CheckpointError as error:
            raise GatewayError(ErrorKind.REFUSED, str(error), "path") from error
        with _cluster_errors("path"):
            return await self._cluster.reload(path)


@contextmanager
def _cluster_errors(field: str | None = None) -> Iterator[None]:
    """The coordinator's answers as the gateway's errors."""
    try:
        yield
    except InvalidScaleError as error:
        raise GatewayError(ErrorKind.INVALID, str(error), field) from error
    except RefusedError as error:
        raise GatewayError(ErrorKind.REFUSED, str(error), field) from error
    except CoordinatorUnavailableError as error:
        raise GatewayError(ErrorKind.UNAVAILABLE, str(error)) from error
