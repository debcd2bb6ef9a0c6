"""The coordinator as a Ray actor: named, detached, restarted for as long as it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray

from expertmesh.actors.collection import keep_all
from expertmesh.actors.coordinator_process import end_if_frozen
from expertmesh.actors.logs import set_up_logging
from expertmesh.actors.metrics.ray_sink import metric_sink
from expertmesh.actors.replica_process import kill_replica
from expertmesh.actors.scaler import DashboardPort
from expertmesh.cluster.coordinator import Coordinator, rules_of
from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.metrics.coordinator import CoordinatorMetrics
from expertmesh.cluster.placement.planner import ExpertPlacer
from expertmesh.cluster.scaling import DEPLOYMENTS, ScalerUnavailableError, ServePort
from expertmesh.cluster.scaling_loop import ScalingLoop
from expertmesh.cluster.trust.secret import FileSecret, HeldSecret, new_secret
from expertmesh.cluster.trust.tls import TlsFiles
from expertmesh.cluster.trust.trust import Trust
from expertmesh.configs.schema import AutoscalingConfig, DeploymentConfig
from expertmesh.configs.security import SecurityConfig
from expertmesh.models.checkpoint import check_checkpoint
from expertmesh.models.spec import MoeSpec
from expertmesh.proto.v1 import internal_pb2_grpc

logger = logging.getLogger(__name__)

NAMESPACE = "expertmesh"
LINGER_S = 60.0
"""The coordinator ends when no member has been connected for this long, after there was one."""
HEAD_NODE_RESOURCE = "node:__internal_head__"
"""What Ray's head node alone offers."""
TELL_S = 1.0
"""Between two looks at what metrics tell of."""
ANSWER_S = 30.0
"""For one call of the actor; its process may have to be started."""


class CoordinatorActor:
    """Serves the coordinator's gRPC on this node.

    Args:
        config_json: the `DeploymentConfig`.
        n_moe_layers: layers with routed experts.
        n_experts: routed experts of each.
        n_groups: groups of experts that the gate chooses by.
        linger_s: see LINGER_S.
        secret: the deployment's, where the configuration names no file; the actor's restarts keep it.
    """

    def __init__(
        self,
        config_json: str,
        n_moe_layers: int,
        n_experts: int,
        n_groups: int,
        linger_s: float,
        secret: str,
    ) -> None:
        keep_all()
        self._config = DeploymentConfig.model_validate_json(config_json)
        # Who comes and goes, what changes and why.
        set_up_logging(self._config.logging, application=self._config.name, process="coordinator")
        self._secret = HeldSecret()
        self._secret.tell(secret)
        self._port = DashboardPort(self._config.name)
        self._loads = LoadTable(n_experts=n_experts, window_s=self._config.balance.window_s)
        self._place = ExpertPlacer(
            n_moe_layers,
            n_experts,
            n_groups=n_groups,
            redundant_slots=self._config.experts.redundant_slots,
            staging_slots=self._config.experts.staging_slots,
            load=self._loads.window_expert_rows,
        )
        self._metrics = CoordinatorMetrics(
            metric_sink(self._config, "coordinator"), self._config.metrics, n_experts
        )
        self._linger_s = linger_s
        self._autoscaling: AutoscalingConfig | None = None
        self._coordinator: Coordinator | None = None
        self._starting: asyncio.Task[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def ping(self) -> None:
        """Answers as long as the event loop turns."""

    async def entrance(self) -> tuple[str, str]:
        """HOST:PORT of the gRPC server, which the first call starts, and the secret that it asks for."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting), self._secret.current

    async def set_autoscaling(self, autoscaling_json: str) -> None:
        """Scales by these settings from now on (an `AutoscalingConfig`)."""
        self._autoscaling = AutoscalingConfig.model_validate_json(autoscaling_json)
        if self._coordinator:
            self._coordinator.set_autoscaling(self._autoscaling)

    async def _start(self) -> str:
        config = await configured_counts(self._config, self._port)
        scaling = partial(ScalingLoop, config, self._port, observe=self._metrics.scaled)
        kill = partial(kill_replica, config.name)
        trust = trust_of(config.security, self._secret)
        self._coordinator = Coordinator(
            rules_of(config), self._place, scaling, self._loads, kill, trust, self._metrics
        )
        if self._autoscaling:
            self._coordinator.set_autoscaling(self._autoscaling)
        address = await self._coordinator.start(ray.util.get_node_ip_address())
        self._tasks.append(asyncio.create_task(self._end_when_deserted(self._coordinator)))
        if self._config.metrics.enabled:
            self._tasks.append(asyncio.create_task(self._tell_metrics(self._coordinator)))
        return address

    async def _tell_metrics(self, coordinator: Coordinator) -> None:
        while True:
            self._metrics.tell(coordinator.observation(), asyncio.get_running_loop().time())
            await asyncio.sleep(TELL_S)

    async def _end_when_deserted(self, coordinator: Coordinator) -> None:
        await coordinator.wait_until_deserted(self._linger_s)
        logger.info("no member for %g s: the coordinator ends", self._linger_s)
        await coordinator.stop()
        # Leaving by itself for good: an exit of the process would be a crash, and Ray would restart it.
        await asyncio.to_thread(ray.kill, ray.get_runtime_context().current_actor, no_restart=True)


async def configured_counts(config: DeploymentConfig, port: ServePort) -> DeploymentConfig:
    """The configuration with the numbers of replicas that Serve has, where they are Serve's to say.

    When Serve cannot be asked its own numbers stand: the deployment begins with whoever is there.
    """
    if not config.counts_from_serve:
        return config
    try:
        targets = await port.targets()
    except ScalerUnavailableError as error:
        logger.warning("how many replicas there are to be is not known: %s", error)
        return config
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update={"replicas": n})
            for name, n in targets.items()
            if name in DEPLOYMENTS
        }
    )


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
