"""One Ray cluster with Serve for all tests that want no other, and which tests stay together.

`make test-cluster` runs two processes side by side (pytest-xdist). Tests that share a deployment are a
group, and a group is run by one process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from serve_cluster import Deployment, ServeCluster
from shared_cluster import shared_cluster
from steady_calls import COALESCING

from expertmesh.configs.load import load_config
from expertmesh.configs.schema import DeploymentConfig

# Tests start clusters behind calls to others, and Ray starts its processes by forks. Beside gRPC's threads,
# its fork handlers end such a child now and then before it has become anything, and nobody is told.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

FOLDER = Path(__file__).parent
DEMO = FOLDER.parents[1] / "configs" / "demo.yaml"


class _Running:
    """The cluster and the deployments that several modules use."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.cluster = self._stack.enter_context(shared_cluster(folder))
        self._deployments: dict[str, tuple[Deployment, contextlib.ExitStack]] = {}
        """And what ends each."""

    def deployment(self, config: DeploymentConfig) -> Deployment:
        if config.name not in self._deployments:
            undeploy = self._stack.enter_context(contextlib.ExitStack())
            [deployment] = undeploy.enter_context(self.cluster.deploy(config))
            self._deployments[config.name] = deployment, undeploy
        known, _ = self._deployments[config.name]
        assert known.config == config, f"two deployments are named {config.name!r}"
        known.until_complete()
        return known

    def undeploy(self, name: str) -> None:
        """Ends a deployment, if it is there."""
        if name in self._deployments:
            _, undeploy = self._deployments.pop(name)
            undeploy.close()

    def stop(self) -> None:
        self._stack.close()


RUNNING = pytest.StashKey[_Running]()


SHARED_DEPLOYMENTS = ("deterministic_1x2", "deterministic_2x2", "fast_2x2")
"""Fixtures of a deployment that several modules use: one process starts it. Its name has dashes."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test a group, and puts modules with a cluster of their own first, then large groups.

    A process is in one cluster at a time, and keeps the one that its tests share to its end. As groups are
    handed out in this order, none with a cluster of its own comes to a process behind one that shares.
    """
    here = [item for item in items if item.path.is_relative_to(FOLDER)]
    groups = {item: _group(item) for item in here}
    sizes = Counter(groups.values())
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    here.sort(key=lambda item: (_shares(item), -sizes[groups[item]], groups[item]))
    items[:] = [*here, *(item for item in items if item not in groups)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    """Ends the run when tests of a group would not stay together."""
    if not all("@" in nodeid for nodeid in ids if nodeid.startswith("tests/cluster/")):
        pytest.exit(
            "--dist loadgroup is missing, or this pytest-xdist does not group tests in this pytest", 1
        )


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends a shared deployment behind its last test: idle, it would load those that follow."""
    running = _folder(item).stash.get(RUNNING, None)
    if running is not None:
        wanted = _fixtures(nextitem) if nextitem else ()
        for name in SHARED_DEPLOYMENTS:
            if name in _fixtures(item) and name not in wanted:
                running.undeploy(name.replace("_", "-"))


def _folder(node: pytest.Item | pytest.Collector) -> Any:
    """The node of this folder, which lives as long as a process has tests in it."""
    return next(parent for parent in node.iter_parents() if parent.path == FOLDER)


def _group(item: pytest.Item) -> str:
    if mark := item.get_closest_marker("xdist_group"):
        return str(mark.args[0])
    shared = [name for name in SHARED_DEPLOYMENTS if name in _fixtures(item)]
    return shared[0] if shared else item.path.relative_to(FOLDER).as_posix()


def _shares(item: pytest.Item) -> bool:
    return "_running" in _fixtures(item)


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


@pytest.fixture(scope="module")
def _running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Running:
    """Joined for a process's first module that asks, and left with the folder's last test there.

    Not for the session: Ray's own processes are never quite idle, and would load the tests behind.
    """
    folder = _folder(request.node)
    if RUNNING not in folder.stash:
        own = tmp_path_factory.getbasetemp()
        # Of a process of pytest-xdist, the parent belongs to the whole run.
        folder.stash[RUNNING] = _Running(own.parent if hasattr(request.config, "workerinput") else own)

        def stop() -> None:
            folder.stash[RUNNING].stop()
            del folder.stash[RUNNING]  # a process that had no test left may be given another

        folder.addfinalizer(stop)
    return folder.stash[RUNNING]


@pytest.fixture(scope="module")
def cluster(_running: _Running) -> ServeCluster:
    """The cluster that all modules share."""
    return _running.cluster


@pytest.fixture(scope="module")
def fast_2x2(_running: _Running, demo_config: Callable[..., DeploymentConfig]) -> Deployment:
    """The demo checkpoint in fp32 on 2 routers and 2 expert hosts, as fast as it goes.

    Its context is longer than what it was trained for, so that a prompt can take several step budgets.
    """
    return _running.deployment(
        demo_config(
            "name=fast-2x2",
            "router.replicas=2",
            "model.dtype=fp32",
            "model.max_context_tokens=8192",
            "scheduler.step_budget_ms=1000",
        )
    )


@pytest.fixture(scope="module")
def deterministic_1x2(_running: _Running, demo_config: Callable[..., DeploymentConfig]) -> Deployment:
    """The demo checkpoint in deterministic mode, with a cache too small for all that may run at once."""
    return _running.deployment(
        demo_config("name=deterministic-1x2", "engine.deterministic=true", "engine.kv_cache_tokens=4096")
    )


@pytest.fixture(scope="module")
def deterministic_2x2(_running: _Running, demo_config: Callable[..., DeploymentConfig]) -> Deployment:
    """Two of each in deterministic mode; who is silent for 3 s is taken for frozen."""
    return _running.deployment(
        demo_config(
            "name=deterministic-2x2",
            COALESCING,
            "gateway.replicas=2",
            "router.replicas=2",
            "experts.replicas=2",
            "engine.deterministic=true",
            "failure.heartbeat_s=0.5",
            "failure.deadline_s=3",
            "failure.report_s=2",
        )
    )


@pytest.fixture(scope="session")
def demo_config() -> Callable[..., DeploymentConfig]:
    """`demo_config("key=value", ...)`: the demo deployment with changes; one compute thread a replica."""

    def load(*changes: str) -> DeploymentConfig:
        return load_config(DEMO, ["router.threads=1", "experts.threads=1", *changes])

    return load


@pytest.fixture(scope="module")
def own_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, demo_config: Callable[..., DeploymentConfig]
) -> Path:
    """A copy of the demo checkpoint that a test may make unreadable."""
    copy = tmp_path_factory.mktemp("checkpoint") / "demo"
    shutil.copytree(demo_config().model.path, copy)
    return copy
