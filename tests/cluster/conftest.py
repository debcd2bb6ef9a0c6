"""One Ray cluster with Serve for all tests of this folder that want one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_cluster import ServeCluster

from expertmesh.configs.load import load_config
from expertmesh.configs.schema import DeploymentConfig

FOLDER = Path(__file__).parent
DEMO = FOLDER.parents[1] / "configs" / "demo.yaml"
RUNNING = pytest.StashKey[ServeCluster]()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> ServeCluster:
    """A cluster that is started for the first module that asks, and ends with the folder's last test.

    Not a session fixture: Ray's own processes are never quite idle, and would load the tests behind.
    """
    folder = next(node for node in request.node.iter_parents() if node.path == FOLDER)
    if RUNNING not in folder.stash:
        folder.stash[RUNNING] = ServeCluster()
        folder.addfinalizer(lambda: folder.stash[RUNNING].stop())
    return folder.stash[RUNNING]


@pytest.fixture(scope="session")
def demo_config() -> Callable[..., DeploymentConfig]:
    """`demo_config("key=value", ...)`: the demo deployment with changes; one compute thread a replica."""

    def load(*changes: str) -> DeploymentConfig:
        return load_config(DEMO, ["router.threads=1", "experts.threads=1", *changes])

    return load


@pytest.fixture(scope="session")
def draw_prompt() -> Callable[[int, int, int], tuple[int, ...]]:
    """`draw_prompt(length, vocab_size, seed)`: random token ids."""

    def draw(length: int, vocab_size: int, seed: int) -> tuple[int, ...]:
        numbers = random.Random(seed)
        return tuple(numbers.randrange(2, vocab_size) for _ in range(length))

    return draw
