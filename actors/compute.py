"""The replicas that compute, as Serve knows them: who only builds an application loads no torch by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from expertmesh.actors.collection import collection_paused


class Computing(Protocol):
    """A router or an expert host that runs."""

    @classmethod
    async def start(cls, config_json: str) -> Computing:
        """One that has joined the deployment; `config_json` is a `DeploymentConfig`."""

    def check_health(self) -> None:
        """Raises when its thread has died."""

    async def leave(self) -> None:
        """Hands over what it has, and ends its threads."""


class _ComputeReplica(ABC):
    """What Serve starts, asks for its health and ends.

    Args:
        config_json: the `DeploymentConfig`.
    """

    async def __init__(self, config_json: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._computing: Computing | None = None
        with collection_paused():
            computing = self._load()
        self._computing = await computing.start(config_json)

    @abstractmethod
    def _load(self) -> type[Computing]:
        """Brings the code into this process."""

    def check_health(self) -> None:
        """Serve's health check."""
        if self._computing is not None:
            self._computing.check_health()

    async def __del__(self) -> None:
        if self._computing is not None:
            await self._computing.leave()


class RouterReplica(_ComputeReplica):
    """Attention, gate, head, cache, scheduler and sampler; the experts, too, where there are no hosts."""

    def _load(self) -> type[Computing]:
        from expertmesh.actors.router import Router

        return Router


class ExpertHostReplica(_ComputeReplica):
    """A slice of the routed experts."""

    def _load(self) -> type[Computing]:
        from expertmesh.actors.experts import ExpertHost

        return ExpertHost
