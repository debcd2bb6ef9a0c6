"""The coordinator as a real Ray actor: found, killed, restarted, and gone when nobody needs it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray
from fake_member import WAIT_S, FakeMember, member_info

from expertmesh.actors.coordinator_access import (
    LINGER_S,
    NAMESPACE,
    CoordinatorFinder,
    actor_name,
    coordinator_address,
    stop_coordinator,
)
from expertmesh.cluster.control import CoordinatorUnavailableError
from expertmesh.configs.schema import DeploymentConfig, FailureConfig, ModelConfig


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _config(name: str, checkpoint: Path) -> DeploymentConfig:
    return DeploymentConfig(
        name=name, model=ModelConfig(path=checkpoint), failure=FailureConfig(announce_s=0.5)
    )


def _member(name: str, config: DeploymentConfig, linger_s: float = LINGER_S) -> FakeMember:
    finder = CoordinatorFinder(config, linger_s)
    return FakeMember(member_info(name), finder, finder.trust)


async def _form(members: Sequence[FakeMember]) -> None:
    for m in members:
        await m.client.start(m)
    for m in members:
        await m.until(lambda m=m: m.live == 1)


def _pid(app_name: str) -> int:
    actor = ray.get_actor(actor_name(app_name), namespace=NAMESPACE)
    pid: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    return pid


async def _until_gone(app_name: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await asyncio.to_thread(ray.get_actor, actor_name(app_name), namespace=NAMESPACE)
            except ValueError:
                return
            await asyncio.sleep(0.1)


def test_members_go_on_after_the_coordinator_was_killed(demo_checkpoint: Path) -> None:
    config = _config("killed", demo_checkpoint)

    async def scenario() -> None:
        members = [_member(n, config) for n in ("r0", "e0", "e1")]
        try:
            await _form(members)
            placement = members[0].generations[0].placement
            assert placement.n_hosts == 2
            first_address = await asyncio.to_thread(coordinator_address, "killed")
            os.kill(await asyncio.to_thread(_pid, "killed"), signal.SIGKILL)
            members[0].client.wake_request(1, 1)
            for m in members:
                await m.until(lambda m=m: m.epochs == [(1, 1)])
            assert await asyncio.to_thread(coordinator_address, "killed") != first_address
            assert [m.live for m in members] == [1, 1, 1]
            await members.pop().client.close()
            for m in members:
                await m.until(lambda m=m: m.live == 2)
        finally:
            for m in members:
                await m.client.close()
            await asyncio.to_thread(stop_coordinator, "killed")
        await _until_gone("killed")
        with pytest.raises(LookupError, match="killed"):
            coordinator_address("killed")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_frozen_coordinator_is_ended_and_another_goes_on(demo_checkpoint: Path) -> None:
    failure = FailureConfig(announce_s=0.5, deadline_s=2.0, heartbeat_s=0.5)
    config = _config("frozen", demo_checkpoint).model_copy(update={"failure": failure})

    async def scenario() -> None:
        members = [_member(n, config) for n in ("r0", "e0", "e1")]
        try:
            await _form(members)
            frozen = await asyncio.to_thread(_pid, "frozen")
            os.kill(frozen, signal.SIGSTOP)
            members[0].client.wake_request(1, 1)
            for m in members:
                await m.until(lambda m=m: m.epochs == [(1, 1)])
            assert [m.live for m in members] == [1, 1, 1], "the generation went on"
            assert await asyncio.to_thread(_pid, "frozen") != frozen
            assert not Path(f"/proc/{frozen}").exists()
        finally:
            for m in members:
                await m.client.close()
            await asyncio.to_thread(stop_coordinator, "frozen")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_without_a_dashboard_scaling_is_unavailable_and_says_why(demo_checkpoint: Path) -> None:
    config = _config("no-dashboard", demo_checkpoint)

    async def scenario() -> None:
        gateway = _member("g0", config)
        try:
            await gateway.client.start(gateway)
            await gateway.until(lambda: gateway.topologies != [])
            with pytest.raises(CoordinatorUnavailableError, match="dashboard does not run"):
                await gateway.client.scale("experts", 3)
            assert not (await gateway.client.get_state()).HasField("targets")
        finally:
            await gateway.client.close()
            await asyncio.to_thread(stop_coordinator, "no-dashboard")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_deserted_coordinator_ends_for_good(demo_checkpoint: Path) -> None:
    config = _config("deserted", demo_checkpoint)

    async def scenario() -> None:
        gateway = _member("g0", config, linger_s=0.5)
        await gateway.client.start(gateway)
        await gateway.until(lambda: gateway.topologies != [])
        await gateway.client.close()
        await _until_gone("deserted")

    asyncio.run(asyncio.wait_for(scenario(), 120))
