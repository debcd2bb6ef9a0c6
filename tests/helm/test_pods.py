"""Pods as they must be: confined, with their weights and keys, and told apart by labels."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from expertmesh.actors.gateway.access.key_file import keyring_of
from expertmesh.configs.load import config_from_dict

VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
MATRIX = [(), *[(path,) for path in VALUES]]
BY_NAME = {path.stem: (path,) for path in VALUES}
pytestmark = pytest.mark.xdist_group("helm")


def pods(rendering: Any) -> dict[str, dict[str, Any]]:
    """Every pod spec by the name of its group; that of `helm test`, too."""
    names = ["head", *[group["groupName"] for group in rendering.cluster["workerGroupSpecs"]]]
    return {name: rendering.pod(name) for name in names} | {"test": rendering.one("Pod")["spec"]}


@pytest.mark.parametrize("values", MATRIX, ids=lambda values: values[0].stem if values else "defaults")
def test_no_pod_is_root_or_may_become_it(chart, values):
    for name, spec in pods(chart.render(values)).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "privileged" not in context, name


@pytest.mark.parametrize("values", MATRIX, ids=lambda values: values[0].stem if values else "defaults")
def test_every_mount_has_its_volume_and_every_volume_its_mount(chart, values):
    for name, spec in pods(chart.render(values)).items():
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        containers = [*spec["containers"], *spec.get("initContainers", [])]
        mounts = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        assert mounts == volumes, name


@pytest.mark.parametrize("values", MATRIX, ids=lambda values: values[0].stem if values else "defaults")
def test_selectors_find_the_pods_that_are_meant(chart, values):
    rendering = chart.render(values)
    groups = rendering.cluster["workerGroupSpecs"]
    labels = {group["groupName"]: group["template"]["metadata"]["labels"] for group in groups}
    labels["head"] = rendering.cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    labels["test"] = rendering.one("Pod")["metadata"]["labels"]

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for budget in rendering.of("PodDisruptionBudget"):
        name = budget["metadata"]["name"].rpartition("-")[2]
        assert selected(budget["spec"]["selector"]["matchLabels"]) == {name}
    for service in rendering.of("Service"):
        wanted = {"gateway"} if service["metadata"]["name"].endswith("headless") else set(labels)
        assert selected(service["spec"]["selector"]) == wanted
    for monitor in rendering.of("PodMonitor"):
        assert selected(monitor["spec"]["selector"]["matchLabels"]) == set(labels)


def test_only_the_head_talks_to_kubernetes_and_only_for_the_autoscaler(chart):
    on = {name: spec["automountServiceAccountToken"] for name, spec in pods(chart.render()).items()}
    assert {name for name, token in on.items() if token} == {"head"}
    off = pods(chart.render((), "rayAutoscaler.enabled=false"))
    assert not any(spec["automountServiceAccountToken"] for spec in off.values())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gpu", {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}),
        ("fused", {"hostPath": {"path": "/srv/models", "type": "Directory"}}),
        ("edge", {"emptyDir": {"sizeLimit": "100Gi"}}),
    ],
)
def test_weights_come_from_where_the_values_say(chart, name, source):
    rendering = chart.render(BY_NAME[name])
    for pod, spec in pods(rendering).items():
        if pod == "test":
            continue
        [volume] = [v for v in spec["volumes"] if v["name"] == "weights"]
        assert volume == {"name": "weights"} | source
        [mount] = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "weights"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)
        assert bool(spec.get("initContainers")) == (name == "edge")


def test_ports_are_the_deployments_and_have_the_names_that_kuberay_knows(chart):
    rendering = chart.render(BY_NAME["edge"])
    for name in ("head", "gateway", "router", "experts"):
        ports = {p["name"]: p["containerPort"] for p in rendering.pod(name)["containers"][0]["ports"]}
        assert (ports["serve"], ports["serve-grpc"]) == (8080, 9090)
    ports = rendering.ray_service["serveService"]["spec"]["ports"]
    assert [port["name"] for port in ports] == ["serve", "serve-grpc"]


def test_keys_reach_the_gateways_alone(chart):
    rendering = chart.render(BY_NAME["edge"])
    holders = {
        name
        for name, spec in pods(rendering).items()
        if any(v.get("secret", {}).get("secretName") == "edge-api-keys" for v in spec.get("volumes", []))
    }
    assert holders == {"gateway"}
    secrets = {s["metadata"]["name"]: s for s in rendering.of("Secret")}
    assert secrets.keys() == {"edge-api-keys", "edge-api-keys-clear", "edge-ray-token"}
    holders = {name for name, spec in pods(rendering).items() if "edge-api-keys-clear" in str(spec)}
    assert holders == {"test"}
    clear = {
        name: b64decode(value).decode() for name, value in secrets["edge-api-keys-clear"]["data"].items()
    }
    keyring = keyring_of(b64decode(secrets["edge-api-keys"]["data"]["keys"]), Path("keys"))
    assert {name: keyring.find(key).access.name.lower() for name, key in clear.items()} == {
        "admin": "admin",
        "user": "user",
    }
    [application] = rendering.serve_config["applications"]
    assert application["args"]["access"]["key_file"] == "/etc/expertmesh/api-keys/keys"
    assert not any(key in str(rendering.ray_service) for key in clear.values())


def test_a_cluster_secret_and_certificates_reach_every_pod_and_the_deployment(chart):
    rendering = chart.render(BY_NAME["secrets"])
    for name, spec in pods(rendering).items():
        if name == "test":
            continue
        mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        held = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
        assert (held["cluster-secret"], held["tls"]) == ("between-pods", "internal-tls")
        assert mounts["cluster-secret"] == "/etc/expertmesh/cluster-secret"
        assert mounts["tls"] == "/etc/expertmesh/tls"
    [application] = rendering.serve_config["applications"]
    security = config_from_dict(application["args"]).security
    assert security.internal_tls.enabled
    assert str(security.cluster_secret_file) == "/etc/expertmesh/cluster-secret/secret"


def test_secrets_that_exist_are_used_and_not_made(chart):
    rendering = chart.render(BY_NAME["secrets"])
    assert rendering.of("Secret") == []
    assert rendering.cluster["authOptions"] == {"mode": "token", "secretName": "ray"}


def test_redis_keeps_the_clusters_state(chart):
    options = chart.render(BY_NAME["gpu"]).cluster["gcsFaultToleranceOptions"]
    assert options == {
        "redisAddress": "redis.models:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }


def test_without_rays_autoscaler_every_group_has_its_pods(chart):
    rendering = chart.render((), "rayAutoscaler.enabled=false", "groups.experts.maxPods=3")
    group = rendering.group("experts")
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)


def test_extra_objects_are_templates(chart):
    names = {thing["metadata"]["name"] for thing in chart.render(BY_NAME["edge"]).of("ConfigMap")}
    assert names == {"mesh-note", "edge-text"}
