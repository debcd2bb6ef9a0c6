"""`expertmesh build`: the same deployment as a config that Ray Serve deploys by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from expertmesh.configs.schema import DeploymentConfig

IMPORT_PATH = "expertmesh.actors.app:build"


def serve_deploy_config(config: DeploymentConfig, servicer_functions: Sequence[str]) -> str:
    """YAML for `serve deploy`, Serve's REST interface, or a RayService's `serveConfigV2`."""
    settings: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.http.host, "port": config.http.port},
        "grpc_options": {"port": config.grpc.port, "grpc_servicer_functions": list(servicer_functions)},
        "applications": [
            {
                "name": config.name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "external_scaler_enabled": True,
                "args": config.model_dump(mode="json"),
            }
        ],
    }
    return yaml.safe_dump(settings, sort_keys=False)
