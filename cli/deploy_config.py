"""`expertmesh build`: the same deployment as a config that Ray Serve deploys by itself.

What may change while it runs stands where Serve changes it without building the application anew, which
restarts every replica: numbers of replicas and `LiveSettings` under `deployments`, all else under `args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from expertmesh.configs.edge import HttpConfig
from expertmesh.configs.schema import DeploymentConfig, LiveSettings

IMPORT_PATH = "expertmesh.actors.app:build"


def serve_deploy_config(config: DeploymentConfig, servicer_functions: Sequence[str]) -> str:
    """YAML for `serve deploy`, Serve's REST interface, or a RayService's `serveConfigV2`."""
    settings: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": http_options(config.http),
        "grpc_options": {"port": config.grpc.port, "grpc_servicer_functions": list(servicer_functions)},
        "applications": [
            {
                "name": config.name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "external_scaler_enabled": True,
                "args": _args(config),
                "deployments": _deployments(config),
            }
        ],
    }
    return yaml.safe_dump(settings, sort_keys=False)


def http_options(http: HttpConfig) -> dict[str, Any]:
    """What Serve's HTTP proxies are started with."""
    options: dict[str, Any] = {"host": http.host, "port": http.port}
    if http.tls_cert_file is not None:
        options |= {"ssl_certfile": str(http.tls_cert_file), "ssl_keyfile": str(http.tls_key_file)}
    return options


def _args(config: DeploymentConfig) -> dict[str, Any]:
    args = config.model_dump(mode="json", exclude=set(LiveSettings.model_fields))
    args["counts_from_serve"] = True
    # Whoever is there begins when Serve cannot be asked; 0 expert hosts is another kind of deployment.
    args["gateway"]["replicas"] = args["router"]["replicas"] = 1
    args["experts"]["replicas"] = min(config.experts.replicas, 1)
    return args


def _deployments(config: DeploymentConfig) -> list[dict[str, Any]]:
    live = LiveSettings(limits=config.limits, autoscaling=config.autoscaling)
    deployments: list[dict[str, Any]] = [
        {
            "name": "gateway",
            "num_replicas": config.gateway.replicas,
            "user_config": live.model_dump(mode="json"),
        },
        {"name": "router", "num_replicas": config.router.replicas},
    ]
    if not config.fused:
        deployments.append({"name": "experts", "num_replicas": config.experts.replicas})
    return deployments
