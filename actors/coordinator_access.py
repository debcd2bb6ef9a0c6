"""The way to a deployment's coordinator: finding its actor, starting it, and being trusted by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import ray

from expertmesh.actors.coordinator_process import end_if_frozen
from expertmesh.cluster.trust.secret import FileSecret, HeldSecret, new_secret
from expertmesh.cluster.trust.tls import TlsFiles
from expertmesh.cluster.trust.trust import Trust
from expertmesh.configs.schema import AutoscalingConfig, DeploymentConfig
from expertmesh.configs.security import SecurityConfig
from expertmesh.models.checkpoint import check_checkpoint
from expertmesh.models.spec import MoeSpec
from expertmesh.proto.v1 import internal_pb2_grpc

NAMESPACE = "expertmesh"
LINGER_S = 60.0
"""The coordinator ends when no member has been connected for this long, after there was one."""
HEAD_NODE_RESOURCE = "node:__internal_head__"
"""What Ray's head node alone offers."""
ANSWER_S = 30.0
"""For one call of the actor; its process may have to be started."""


async def tell_autoscaling(app_name: str, autoscaling: AutoscalingConfig) -> None:
    """Lets a running coordinator scale by these settings.

    Raises:
        ray.exceptions.RayError: it is just restarting or has died.
        TimeoutError: it did not answer within ANSWER_S.
    """
    actor = await asyncio.to_thread(_get, app_name)
    if actor is not None:
        async with asyncio.timeout(ANSWER_S):
            await actor.set_autoscaling.remote(autoscaling.model_dump_json())


def actor_name(app_name: str) -> str:
    """The actor's name in NAMESPACE."""
    return f"{app_name}:coordinator"


def trust_of(security: SecurityConfig, held: HeldSecret) -> Trust:
    """How the processes of a deployment know each other.

    Args:
        security: the configuration.
        held: takes the place of the file with the secret, where none is configured.

    Raises:
        SecretError: the configured file cannot be used.
    """
    file, tls = security.cluster_secret_file, security.internal_tls
    files = None
    if tls.cert_file and tls.key_file and tls.ca_file:
        files = TlsFiles(tls.cert_file, tls.key_file, tls.ca_file, tls.server_name)
    return Trust(FileSecret(file) if file else held, files)


class CoordinatorFinder:
    """What a member's client asks for the coordinator's address, before every connection.

    Who asks over Ray, whose own token guards its actors, is told the deployment's secret, too.

    Args:
        config: the deployment.
        linger_s: see LINGER_S.
    """

    def __init__(self, config: DeploymentConfig, linger_s: float = LINGER_S) -> None:
        self._config = config
        self._linger_s = linger_s
        self._secret = HeldSecret()
        self.trust = trust_of(config.security, self._secret)
        """How this process is known to the others, and they to it."""

    async def __call__(self) -> str:
        """The coordinator's HOST:PORT; starts the actor when there is none.

        Raises:
            CheckpointError: the actor had to be started, and the checkpoint cannot be served.
            ray.exceptions.RayError: the actor is just restarting or has died; ask again.
            FrozenCoordinatorError: it did not answer within `failure.deadline_s` and was ended; ask again.
            TimeoutError: it did not answer within ANSWER_S.
        """
        # Whoever has to start it anew hands on the secret that the others know.
        secret = self._secret.current or new_secret()
        actor = await asyncio.to_thread(_get_or_create, self._config, self._linger_s, secret)
        await end_if_frozen(actor, self._config.failure.deadline_s)
        async with asyncio.timeout(ANSWER_S):
            address, secret = await actor.entrance.remote()
        self._secret.tell(secret)
        return str(address)


@contextlib.contextmanager
def coordinator_stub(config: DeploymentConfig, timeout_s: float = ANSWER_S) -> Iterator[Any]:
    """Calls of internal.v1.Coordinator of a running deployment, for threads.

    Raises:
        LookupError: no deployment of this name runs on the cluster.
        ray.exceptions.RayError: the coordinator is just restarting, or did not answer in time.
    """
    held = HeldSecret()
    address, secret = _entrance(config.name, timeout_s)
    held.tell(secret)
    with trust_of(config.security, held).blocking_channel(address) as channel:
        yield internal_pb2_grpc.CoordinatorStub(channel)


def coordinator_address(app_name: str, timeout_s: float = ANSWER_S) -> str:
    """The HOST:PORT of a running deployment's coordinator; raises what `coordinator_stub` does."""
    return _entrance(app_name, timeout_s)[0]


def _entrance(app_name: str, timeout_s: float) -> tuple[str, str]:
    actor = _get(app_name)
    if actor is None:
        raise LookupError(f"no deployment {app_name!r} runs on this Ray cluster")
    address, secret = ray.get(actor.entrance.remote(), timeout=timeout_s)
    return address, secret


def stop_coordinator(app_name: str) -> None:
    """Ends a deployment's coordinator for good, if there is one."""
    actor = _get(app_name)
    if actor is not None:
        ray.kill(actor, no_restart=True)


def _get(app_name: str) -> Any | None:
    try:
        return ray.get_actor(actor_name(app_name), namespace=NAMESPACE)
    except ValueError:
        return None


def _get_or_create(config: DeploymentConfig, linger_s: float, secret: str) -> Any:
    actor = _get(config.name)
    if actor is not None:
        return actor
    # Most processes find it there, and are spared the code that it runs.
    from expertmesh.actors.coordinator import CoordinatorActor

    spec = check_checkpoint(config.model.path, drafts=config.speculative.drafts)
    actor_class: Any = ray.remote(CoordinatorActor)
    options = actor_class.options(
        name=actor_name(config.name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        # Beside Serve's controller. Ray would start what is lost with any other node elsewhere only
        # after it has given that node up.
        resources={HEAD_NODE_RESOURCE: 0.001},
    )
    moe = [layer.ffn for layer in spec.moe_layers if isinstance(layer.ffn, MoeSpec)]
    n_groups = moe[0].gate.n_groups if moe else 1
    return options.remote(
        config.model_dump_json(), len(spec.moe_layers), spec.n_experts, n_groups, linger_s, secret
    )
