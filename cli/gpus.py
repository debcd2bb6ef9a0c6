"""How routers and expert hosts share a cluster's GPUs where the deployment file does not say."""

from __future__ import annotations

import math

from expertmesh.cli.errors import UsageError
from expertmesh.configs.schema import DeploymentConfig


def with_gpu_shares(config: DeploymentConfig, n_gpus: int) -> DeploymentConfig:
    """Gives every router and host a GPU, or an equal share of one, unless the file gives them some.

    Args:
        n_gpus: of the whole cluster.

    Raises:
        UsageError: the deployment wants GPUs and the cluster has none.
    """
    if config.device != "cuda" or config.router.gpus or config.experts.gpus:
        return config
    if n_gpus == 0:
        raise UsageError("device is cuda, but the Ray cluster has no GPU")
    members = config.router.replicas + config.experts.replicas
    # Ray takes whole GPUs or a fraction of one.
    share = 1.0 if n_gpus >= members else math.floor(1000 / math.ceil(members / n_gpus)) / 1000
    return config.model_copy(
        update={
            "router": config.router.model_copy(update={"gpus": share}),
            "experts": config.experts.model_copy(update={"gpus": share}),
        }
    )
