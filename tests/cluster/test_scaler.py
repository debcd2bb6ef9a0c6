"""Serve's scale endpoint on the real dashboard port, with its token, and the loop that watches it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from expertmesh.actors.scaler import DashboardPort
from expertmesh.cli.ports import free_ports
from expertmesh.cluster import scaling_loop
from expertmesh.cluster.scaling import (
    Capacity,
    Resources,
    ScaleRefusedError,
    ScalerUnavailableError,
    ScalingFacts,
)
from expertmesh.cluster.scaling_loop import ScalingLoop
from expertmesh.configs.schema import DeploymentConfig, ExpertsConfig, ModelConfig

APP = "scaled"
N_CPUS = 2.0
HOST_CPUS = 0.5
WAIT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def dashboard() -> Iterator[str]:
    """A cluster with a dashboard, and on it an application of idle `gateway` and `experts` replicas."""
    context = ray.init(
        address="local",
        num_cpus=N_CPUS,
        include_dashboard=True,
        log_to_driver=False,
        object_store_memory=128 << 20,
    )
    try:
        [port] = free_ports(1)
        serve.start(
            http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"}
        )
        serve.run_many(
            [
                serve.RunTarget(
                    target=_idle("gateway", 0.1).bind(_idle("experts", HOST_CPUS).bind()),
                    name=APP,
                    route_prefix="/",
                    external_scaler_enabled=True,
                ),
                serve.RunTarget(target=_idle("gateway", 0.1).bind(), name="fixed", route_prefix="/fixed"),
            ]
        )
        yield f"http://{context.dashboard_url}"
    finally:
        serve.shutdown()
        ray.shutdown()


def _idle(name: str, cpus: float) -> serve.Deployment:
    class Idle:
        def __init__(self, *children: Any) -> None:
            pass

    return serve.deployment(name=name, graceful_shutdown_timeout_s=1, ray_actor_options={"num_cpus": cpus})(
        Idle
    )


def _tell_serve(dashboard: str, deployment: str, n: int) -> None:
    """As people do: curl with the token."""
    request = urllib.request.Request(
        f"{dashboard}/api/v1/applications/{APP}/deployments/{deployment}/scale",
        data=json.dumps({"target_num_replicas": n}).encode(),
        headers={"Content-Type": "application/json", **get_auth_headers_if_auth_enabled({})},
    )
    urllib.request.urlopen(request, timeout=WAIT_S).close()


def _running(deployment: str) -> int:
    states = serve.status().applications[APP].deployments[deployment].replica_states
    return states.get("RUNNING", 0)


async def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)


def test_an_actor_finds_dashboard_and_token_and_scales() -> None:
    class Scaler:
        def __init__(self, app_name: str) -> None:
            self.port = DashboardPort(app_name)

        async def targets(self) -> dict[str, int]:
            return await self.port.targets()

        async def set_target(self, deployment: str, n: int) -> None:
            await self.port.set_target(deployment, n)

        async def capacity(self) -> Capacity:
            return await self.port.capacity()

    scaler = ray.remote(num_cpus=0)(Scaler).remote(APP)
    assert ray.get(scaler.targets.remote()) == {"gateway": 1, "experts": 1}
    capacity = ray.get(scaler.capacity.remote())
    assert capacity.placed == {"gateway": 1, "experts": 1}
    assert capacity.ending == {"gateway": 0, "experts": 0}
    [node, growth] = capacity.free
    assert 0 < node.cpus <= N_CPUS - HOST_CPUS
    assert growth == Resources(0, 0)
    ray.get(scaler.set_target.remote("experts", 2))
    assert ray.get(scaler.targets.remote())["experts"] == 2
    asyncio.run(_until(lambda: _running("experts") == 2))


def test_what_cannot_be_scaled_is_said() -> None:
    with pytest.raises(ScaleRefusedError, match="'fixed' was deployed without external_scaler_enabled"):
        asyncio.run(DashboardPort("fixed").set_target("experts", 2))
    with pytest.raises(ScalerUnavailableError, match="no application 'other'"):
        asyncio.run(DashboardPort("other").targets())


class _Cluster:
    """The coordinator of a deployment at rest."""

    def facts(self) -> ScalingFacts:
        return ScalingFacts(serving=True, steady=True)

    def rebalance(self, reason: str) -> bool:
        return False


@contextlib.asynccontextmanager
async def _loop() -> AsyncIterator[ScalingLoop]:
    config = DeploymentConfig(
        name=APP, model=ModelConfig(path=Path("none")), experts=ExpertsConfig(cpus=HOST_CPUS)
    )
    loop = ScalingLoop(config, DashboardPort(APP), _Cluster(), poll_s=0.1)
    loop.start()
    try:
        await _until(lambda: loop.targets is not None)
        yield loop
    finally:
        await loop.stop()


def test_wishes_are_taken_over_or_set_back(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        now_s = asyncio.get_running_loop().time

        def note() -> str:
            return loop.note(now_s())

        async with _loop() as loop:
            assert await loop.scale("experts", 1) == 2
            await asyncio.to_thread(_tell_serve, dashboard, "experts", 3)
            await _until(lambda: loop.targets == {"gateway": 1, "experts": 3})
            assert note() == ""
            # Until Serve has placed them, their room counts as free.
            await _until(lambda: _running("experts") == 3)
            # More than the cluster has room for: refused here, set back when Serve was told.
            with pytest.raises(ScaleRefusedError, match="room for 3 expert hosts, not for 100"):
                await loop.scale("experts", 100)
            monkeypatch.setattr(scaling_loop, "PLACE_S", 1.0)
            await asyncio.to_thread(_tell_serve, dashboard, "experts", 5)
            await _until(lambda: "set back to 3" in note())
            assert await DashboardPort(APP).targets() == {"gateway": 1, "experts": 3}
            await asyncio.to_thread(_tell_serve, dashboard, "gateway", 0)
            await _until(lambda: "gateway: at least 1 gateway must stay" in note())
            assert await DashboardPort(APP).targets() == {"gateway": 1, "experts": 3}
            assert await loop.scale("experts", 1) == 3
        await _until(lambda: (_running("gateway"), _running("experts")) == (1, 1))

    asyncio.run(asyncio.wait_for(scenario(), 240))
