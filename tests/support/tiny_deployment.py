"""The configuration that tiny checkpoints are served with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertmesh.configs.schema import (
    DeploymentConfig,
    EngineConfig,
    ExpertsConfig,
    ModelConfig,
    RouterConfig,
    SchedulerConfig,
)

STEP_TOKENS = 24
"""Well below most prompts, so that they are computed in chunks beside the others' decodes."""


def tiny_config(
    name: str, folder: Path, n_routers: int, n_hosts: int, step_tokens: int = STEP_TOKENS, **experts: Any
) -> DeploymentConfig:
    """A deployment of a tiny checkpoint, one compute thread a replica.

    Args:
        step_tokens: a step's budget.
        experts: further settings of `experts`.
    """
    return DeploymentConfig(
        name=name,
        model=ModelConfig(path=folder),
        router=RouterConfig(replicas=n_routers, threads=1),
        experts=ExpertsConfig(replicas=n_hosts, threads=1, **experts),
        engine=EngineConfig(kv_cache_tokens=4096),
        scheduler=SchedulerConfig(max_step_tokens=step_tokens),
    )
