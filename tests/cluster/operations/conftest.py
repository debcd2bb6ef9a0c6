"""One deployment with API keys, a cluster secret and mutual TLS, which all modules of this folder share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
from api_keys import entry, write_keys
from certificates import Authority
from otlp_receiver import OtlpReceiver
from serve_cluster import TOKEN_FILE, Deployment, ServeCluster

from expertmesh.actors.gateway.access.keys import new_key
from expertmesh.cluster.trust.secret import new_secret
from expertmesh.configs.schema import DeploymentConfig

KEY_RELOAD_S = 0.2


@dataclass(frozen=True)
class Operated:
    """The deployment and what operating it takes."""

    admin: Deployment
    """As a client with the admin key sees it."""
    user: Deployment
    """As a client with the user key sees it."""
    anonymous: Deployment
    """As a client without a key sees it."""
    cluster: ServeCluster
    key_file: Path
    dashboard_token: str
    """For Ray's dashboard port; empty where it asks for none."""
    spans: OtlpReceiver
    """Receives what is traced: requests whose clients trace them."""

    @property
    def metrics_urls(self) -> list[str]:
        """Where Ray's nodes export metrics for Prometheus."""
        return [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in ray.nodes()
            if node["Alive"]
        ]

    def write_keys(self, *more: dict[str, object]) -> None:
        """Puts further keys into the key file, beside the admin's and the user's; none takes them out."""
        standing = (entry(self.admin.key, "admin", "operator"), entry(self.user.key, "user", "service"))
        write_keys(self.key_file, *standing, *more)


FOLDER = Path(__file__).parent
RUNNING = pytest.StashKey[Operated]()


@pytest.fixture(scope="module")
def operated(
    request: pytest.FixtureRequest,
    demo_config: Callable[..., DeploymentConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Operated:
    """The demo checkpoint on 1 router and 2 expert hosts. Whoever kills or scales puts it back.

    Started for the first module that asks, and ended with the folder's last test.
    """
    folder = next(node for node in request.node.iter_parents() if node.path == FOLDER)
    if RUNNING not in folder.stash:
        running = contextlib.ExitStack()
        folder.addfinalizer(running.close)
        operated = _start(demo_config, tmp_path_factory.mktemp("operated"))
        folder.stash[RUNNING] = running.enter_context(operated)
    found = folder.stash[RUNNING]
    found.admin.until_complete()
    return found


@contextlib.contextmanager
def _start(demo_config: Callable[..., DeploymentConfig], folder: Path) -> Iterator[Operated]:
    key_file = folder / "keys.yaml"
    admin_key, user_key = new_key(), new_key()
    write_keys(key_file, entry(admin_key, "admin", "operator"), entry(user_key, "user", "service"))
    secret_file = folder / "secret"
    secret_file.write_text(new_secret())
    authority = Authority(folder)
    certificate = authority.issue()
    # Ray first: a process in which gRPC serves cannot start it safely, as it forks.
    with (
        contextlib.closing(ServeCluster.start(metrics_interval_s=1.0)) as cluster,
        contextlib.closing(OtlpReceiver()) as spans,
    ):
        config = demo_config(
            "name=operated",
            "experts.redundant_slots=4",
            f"access.key_file={key_file}",
            f"access.reload_s={KEY_RELOAD_S}",
            f"security.cluster_secret_file={secret_file}",
            f"security.internal_tls.cert_file={certificate.cert_file}",
            f"security.internal_tls.key_file={certificate.key_file}",
            f"security.internal_tls.ca_file={authority.ca_file}",
            # Only what a client says that it traces.
            f"tracing.otlp_endpoint={spans.endpoint}",
            "tracing.sample_ratio=0",
            "tracing.decode_steps_per_span=8",
            "logging.format=json",
        )
        with cluster.deploy(config, key=admin_key) as [admin]:
            yield Operated(
                admin,
                replace(admin, key=user_key),
                replace(admin, key=""),
                cluster,
                key_file,
                TOKEN_FILE.read_text().strip() if TOKEN_FILE.exists() else "",
                spans,
            )
