"""What `expertmesh build` prints: whole, accepted by Serve, and changed in place where it can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
from expertmesh.cli.deploy_config import serve_deploy_config
from expertmesh.configs.load import ConfigError, config_from_dict, load_config
from expertmesh.configs.schema import LiveSettings

REPOSITORY = Path(__file__).resolve().parents[3]


def built(*overrides: str) -> dict:
    config = load_config(REPOSITORY / "configs" / "demo.yaml", overrides)
    return yaml.safe_load(serve_deploy_config(config, SERVICER_FUNCTIONS))


def test_serve_accepts_it():
    schema = ServeDeploySchema.model_validate(built())
    [application] = schema.applications
    assert [(d.name, d.num_replicas) for d in application.deployments] == [
        ("gateway", 1),
        ("router", 1),
        ("experts", 2),
    ]


@pytest.mark.parametrize(
    "override",
    [
        "experts.replicas=7",
        "router.replicas=3",
        "gateway.replicas=2",
        "limits.max_queued_requests=5",
        "autoscaling.enabled=true",
        "autoscaling.experts.max_replicas=9",
    ],
)
def test_scale_limits_and_autoscaling_leave_the_code_version_alone(override):
    [before], [after] = built()["applications"], built(override)["applications"]
    assert before["deployments"] != after["deployments"]
    # Serve hashes these to tell whether the application must be built anew.
    assert [before[key] for key in ("args", "import_path")] == [
        after[key] for key in ("args", "import_path")
    ]


def test_every_setting_arrives():
    overrides = ["limits.max_n=3", "engine.deterministic=true", "router.resources={attention: 1}"]
    config = load_config(REPOSITORY / "configs" / "demo.yaml", overrides)
    [application] = built(*overrides)["applications"]
    live = LiveSettings.model_validate(application["deployments"][0]["user_config"])
    again = config_from_dict(application["args"])
    assert live.limits == config.limits
    assert live.autoscaling == config.autoscaling
    assert again.engine == config.engine
    assert again.router.resources == {"attention": 1.0}
    assert again.counts_from_serve


def test_a_fused_deployment_has_no_expert_hosts():
    [application] = built("experts.replicas=0")["applications"]
    assert [d["name"] for d in application["deployments"]] == ["gateway", "router"]
    assert config_from_dict(application["args"]).fused


def test_https_is_serves_to_speak(tmp_path):
    path = tmp_path / "tls.yaml"
    path.write_text("model: {path: a}\nhttp: {tls_cert_file: tls.crt, tls_key_file: tls.key}\n")
    config = ServeDeploySchema(**yaml.safe_load(serve_deploy_config(load_config(path), ())))
    assert config.http_options.ssl_certfile == str(tmp_path / "tls.crt")
    assert config.http_options.ssl_keyfile == str(tmp_path / "tls.key")
    path.write_text("model: {path: a}\nhttp: {tls_cert_file: tls.crt}\n")
    with pytest.raises(ConfigError, match="tls_key_file"):
        load_config(path)
