"""What Serve is told about the processes of a deployment."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.serve import Application

from expertmesh.actors.app import CLUSTER_ENV, COMPUTE_ENV, IDLE_ENV, build_app
from expertmesh.configs.schema import DeploymentConfig, ModelConfig


def environments(application: Application) -> list[dict[str, str] | None]:
    """Of the gateway, the router and the expert hosts."""
    gateway = application._bound_deployment
    _, *children = gateway.init_args
    deployments = [gateway, *(child._bound_deployment for child in children)]
    options = [deployment.ray_actor_options or {} for deployment in deployments]
    return [(option.get("runtime_env") or {}).get("env_vars") for option in options]


@pytest.mark.parametrize(
    ("present", "set_for_replicas"),
    [
        ({}, [IDLE_ENV, COMPUTE_ENV, COMPUTE_ENV]),
        (COMPUTE_ENV, [None, None, None]),
        (CLUSTER_ENV, [None, None, None]),
        (IDLE_ENV, [None, *[dict(COMPUTE_ENV.items() - IDLE_ENV.items())] * 2]),
        (COMPUTE_ENV | {"OMP_WAIT_POLICY": "ACTIVE"}, [None, *[{"OMP_WAIT_POLICY": "PASSIVE"}] * 2]),
    ],
)
def test_replicas_get_the_variables_that_nodes_lack(
    demo_checkpoint: Path, present: dict[str, str], set_for_replicas: list[dict[str, str] | None]
) -> None:
    config = DeploymentConfig(name="mesh", model=ModelConfig(path=demo_checkpoint))
    assert environments(build_app(config, present)) == set_for_replicas
