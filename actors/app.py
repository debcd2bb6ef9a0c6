"""The Serve application of one deployment: gateway, router and experts, bound together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ray import serve
from ray.serve import Application

from expertmesh.actors.compute import ExpertHostReplica, RouterReplica
from expertmesh.actors.fitting import fit_to_model
from expertmesh.actors.gateway.deployment import gateway_class
from expertmesh.configs.load import config_from_dict
from expertmesh.configs.schema import DeploymentConfig, ExpertsConfig, RouterConfig

GATEWAY, ROUTER, EXPERTS = "gateway", "router", "experts"

MAX_ONGOING_CALLS = 100_000
"""The gateway bounds its queue itself, with a typed refusal; Serve's own bound must never strike first."""

HEALTH_CHECK_PERIOD_S = 2.0
"""A replica that has died is replaced at its next check; Serve's default is 10 s."""
STOP_S = 60.0
"""What Serve grants a replica to leave before it is killed."""

IDLE_ENV = {
    # Serve's replicas push their cached metrics this often, with or without news. Its default of 100 ms
    # is a fifth of what an idle replica uses of the processor.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
}
COMPUTE_ENV = IDLE_ENV | {
    # The compiled kernels have threads of their own. torch's would spin for milliseconds after each of its
    # rare parallel operations, on cores that they and the other replicas of the node need.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
CLUSTER_ENV = COMPUTE_ENV | {
    # Serve's controller looks this often at what is wanted and what is there. Its default of 100 ms is half
    # of what it uses of the processor when nothing changes.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
}
"""What all processes of a cluster get that serves this alone."""
NOTHING: Mapping[str, str] = MappingProxyType({})


def build_app(config: DeploymentConfig, env_of_nodes: Mapping[str, str] = NOTHING) -> Application:
    """The deployments `gateway`, `router` and, unless fused, `experts`.

    Tensors and tokens never pass through the handles: they are bound only so that Serve starts and
    scales the three together.

    Args:
        env_of_nodes: environment variables that all of Ray's processes have already. For others Ray starts
            a replica's process in two steps, which costs 0.3 s of a core each time.
    """
    config = fit_to_model(config)
    config_json = config.model_dump_json()
    children = [_compute(ROUTER, config.router, RouterReplica, env_of_nodes).bind(config_json)]
    if not config.fused:
        children.append(
            _compute(EXPERTS, config.experts, ExpertHostReplica, env_of_nodes).bind(config_json)
        )
    application: Application = _gateway(config, env_of_nodes).bind(config_json, *children)
    return application


def build(args: dict[str, Any]) -> Application:
    """The same from a Serve deploy config: `import_path: expertmesh.actors.app:build`, with the
    deployment's settings as `args`."""
    return build_app(config_from_dict(args))


def _gateway(config: DeploymentConfig, env_of_nodes: Mapping[str, str]) -> serve.Deployment:
    return serve.deployment(
        name=GATEWAY,
        num_replicas=config.gateway.replicas,
        max_ongoing_requests=MAX_ONGOING_CALLS,
        graceful_shutdown_timeout_s=STOP_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ray_actor_options={
            "num_cpus": config.gateway.cpus,
            "resources": config.gateway.resources,
            **_env(IDLE_ENV, env_of_nodes),
        },
    )(gateway_class())


def _compute(
    name: str,
    settings: RouterConfig | ExpertsConfig,
    replica_class: type,
    env_of_nodes: Mapping[str, str],
) -> serve.Deployment:
    """A deployment whose replicas compute on a device of their own."""
    return serve.deployment(
        name=name,
        num_replicas=settings.replicas,
        graceful_shutdown_timeout_s=STOP_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "resources": settings.resources,
            **_env(COMPUTE_ENV, env_of_nodes),
        },
    )(replica_class)


def _env(wanted: Mapping[str, str], present: Mapping[str, str]) -> dict[str, Any]:
    """The actor option that sets what is missing; none when nothing is."""
    missing = dict(wanted.items() - present.items())
    return {"runtime_env": {"env_vars": missing}} if missing else {}
