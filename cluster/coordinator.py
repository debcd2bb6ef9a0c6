"""The coordinator's gRPC face: streams of members in and out of the membership state machine.

One asyncio event loop owns everything here. A stream's end is its member's death; a timer, set to the
machine's next deadline, finds the frozen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from expertmesh.cluster.actions import Exclude, Send
from expertmesh.cluster.alarm import Alarm
from expertmesh.cluster.control_service import ControlServicer
from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.membership import Membership
from expertmesh.cluster.messages import message_to_proto
from expertmesh.cluster.metrics.coordinator import CoordinatorMetrics, Observation
from expertmesh.cluster.placement.interface import Placer
from expertmesh.cluster.reloading import old_weights_needed
from expertmesh.cluster.scaling import (
    ReloadRefusedError,
    ScalerUnavailableError,
    ScalingFacts,
    scaling_facts,
)
from expertmesh.cluster.scaling_loop import ScaledCluster, ScalingLoop
from expertmesh.cluster.session import Session
from expertmesh.cluster.state import LEFT_AS_ASKED, MembershipRules
from expertmesh.cluster.topology import topology_update
from expertmesh.cluster.trust.trust import UNGUARDED, Trust, TrustedServer
from expertmesh.cluster.types import MemberInfo, Role
from expertmesh.cluster.wire import (
    WireError,
    generation_from_proto,
    load_from_proto,
    member_from_proto,
)
from expertmesh.configs.schema import AutoscalingConfig, DeploymentConfig
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc

logger = logging.getLogger(__name__)

SERVER_OPTIONS = [
    # Members probe the connection while it is silent, so that a lost node is noticed.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
]


def rules_of(config: DeploymentConfig) -> MembershipRules:
    """The state machine's counts and deadlines as a deployment's configuration has them."""
    return MembershipRules(
        n_routers=config.router.replicas,
        n_experts=config.experts.replicas,
        deadline_s=config.failure.deadline_s,
        report_s=config.failure.report_s,
        prepare_s=config.failure.prepare_s,
        announce_s=config.failure.announce_s,
        gather_s=config.change.gather_s,
        change_retry_s=config.change.retry_s,
    )


class Coordinator(internal_pb2_grpc.MembershipServicer):
    """Serves internal.v1.Membership around a `Membership` machine, and internal.v1.Coordinator beside it.

    Args:
        rules: of the state machine.
        place: where experts stand.
        scaling: makes what scales the deployment; without it nobody does.
        loads: takes what members report.
        kill: ends the process of a member that is out, frozen or not; called on a thread. Without it such
            a process ends when it hears of it.
        trust: who may call.
        metrics: is told of what happens.
    """

    def __init__(
        self,
        rules: MembershipRules,
        place: Placer,
        scaling: Callable[[ScaledCluster], ScalingLoop] | None = None,
        loads: LoadTable | None = None,
        kill: Callable[[MemberInfo], None] | None = None,
        trust: Trust = UNGUARDED,
        metrics: CoordinatorMetrics | None = None,
    ) -> None:
        self._trust = trust
        self._metrics = metrics
        self._kill_process = kill
        self._killing: set[asyncio.Task[None]] = set()
        self._machine = Membership(rules, place)
        self._loads = loads or LoadTable()
        self._sessions: dict[str, Session] = {}
        self._draining = False
        self._server: TrustedServer | None = None
        self._alarm = Alarm(self._machine.next_deadline_s, self._tick)
        self._occupied = asyncio.Event()
        self._vacant = asyncio.Event()
        self._vacant.set()
        self._scaling = scaling(self) if scaling else None

    # ------------------------------------------------------------------ life

    async def start(self, host: str, port: int = 0) -> str:
        """Serves on `host`; gives HOST:PORT. Port 0 takes a free one."""
        server = self._trust.server(SERVER_OPTIONS)
        internal_pb2_grpc.add_MembershipServicer_to_server(self, server.grpc)
        internal_pb2_grpc.add_CoordinatorServicer_to_server(ControlServicer(self), server.grpc)
        address = await server.start(host, port)
        self._server = server
        if self._scaling:
            self._scaling.start()
        return address

    async def stop(self) -> None:
        """Ends every stream without excluding anybody."""
        if self._scaling:
            await self._scaling.stop()
        self._alarm.cancel()
        if self._server:
            await self._server.stop()

    async def wait_until_deserted(self, linger_s: float) -> None:
        """Returns when members were connected and then none has been for `linger_s`."""
        await self._occupied.wait()
        while True:
            await self._vacant.wait()
            try:
                await asyncio.wait_for(self._occupied.wait(), linger_s)
            except TimeoutError:
                return

    # ------------------------------------------------------------------ rpcs

    async def Join(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """A member's stream for its whole life."""
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        try:
            hello = first.hello
            session = Session(member_from_proto(hello))
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return
        await context.send_initial_metadata(())
        self._enter(session, hello)
        tasks = [
            asyncio.create_task(coroutine)
            for coroutine in (self._read(session, context), session.write(context), session.overdue())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(session)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, grpc.RpcError):
                    logger.error("stream of %s: %r", session.member.label, result)

    # ------------------------------------------------------------------ what is asked of it

    def topology(self) -> pb.TopologyUpdate:
        """The state of the deployment."""
        update = topology_update(
            self._machine.view(),
            self._loads,
            draining=self._draining,
            targets=self._scaling.targets if self._scaling else None,
            now_s=self._now_s(),
            members=tuple(session.member for session in self._sessions.values()),
        )
        update.gateways = len(self._gateways())
        if self._scaling and not update.reason:
            update.reason = self._scaling.note(self._now_s())
        return update

    def drain(self) -> None:
        """Gateways stop admitting."""
        if not self._draining:
            self._draining = True
            self._apply(self._machine.drain(self._now_s()))
            for session in self._gateways():
                self._send_drain(session)

    def reload(self, path: str) -> tuple[int, int]:
        """Loads other weights beside those that are served. Gives their version, and a number that is less
        than that of the generation which brings them.

        Raises:
            ReloadRefusedError: not now; nothing has changed.
        """
        if refusal := self._machine.reload_refusal:
            raise ReloadRefusedError(refusal)
        highest = self._machine.highest_generation
        version, actions = self._machine.reload(path, self._now_s())
        logger.info("weights version %d is asked for: %s", version, path)
        self._apply(actions)
        return version, highest

    @property
    def scaling(self) -> ScalingLoop:
        """What scales the deployment; raises ScalerUnavailableError when there is nothing that does."""
        if self._scaling is None:
            raise ScalerUnavailableError("this coordinator was started without a way to scale")
        return self._scaling

    def set_autoscaling(self, autoscaling: AutoscalingConfig) -> None:
        """Scales by other settings from now on, where anything is scaled."""
        if self._scaling:
            self._scaling.set_autoscaling(autoscaling)

    def facts(self) -> ScalingFacts:
        """What scaling depends on."""
        return scaling_facts(
            self._machine.view(),
            self._loads,
            members=tuple(session.member for session in self._sessions.values()),
            draining=self._draining,
        )

    def observation(self) -> Observation:
        """What metrics tell of."""
        members = [session.member for session in self._sessions.values()]
        targets = self._scaling.targets if self._scaling else None
        return Observation(self._machine.view(), members, self._loads, targets or {})

    def rebalance(self, reason: str) -> bool:
        """Rebalances in the background; whether there is anything to move."""
        self._apply(self._machine.rebalance(reason, self._now_s()))
        return self._machine.rebalancing

    # ------------------------------------------------------------------ streams

    def _enter(self, session: Session, hello: pb.Hello) -> None:
        member = session.member
        logger.info("%s joins (generation %d)", member.label, hello.generation)
        if old := self._sessions.get(member.incarnation):
            old.end()
        self._sessions[member.incarnation] = session
        self._occupied.set()
        self._vacant.clear()
        self._apply(
            self._machine.joined(
                member,
                hello.generation,
                hello.seen_generation,
                self._now_s(),
                hello.next_generation,
                generation_from_proto(hello.running) if hello.HasField("running") else None,
                hello.epoch,
            )
        )
        if self._draining and member.role is Role.GATEWAY:
            self._send_drain(session)
        self._tell_gateways_of(session)

    def _leave(self, session: Session) -> None:
        incarnation = session.member.incarnation
        if self._sessions.get(incarnation) is not session:
            return
        logger.info("%s is gone", session.member.label)
        del self._sessions[incarnation]
        self._loads.forget(incarnation)
        if not self._sessions:
            self._occupied.clear()
            self._vacant.set()
        self._apply(self._machine.left(incarnation, self._now_s()))
        self._tell_gateways_of(session)
        self._look()
        self._retire_weights()

    def _gateways(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.member.role is Role.GATEWAY]

    def _tell_gateways_of(self, newcomer_or_gone: Session) -> None:
        """Gateways share the limits of API keys: each has to know how many they are."""
        if newcomer_or_gone.member.role is Role.GATEWAY:
            for session in self._gateways():
                if session is not newcomer_or_gone:
                    session.send(pb.CoordinatorMessage(topology=self.topology()))

    def _look(self) -> None:
        if self._scaling:
            self._scaling.look()

    async def _read(self, session: Session, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            if self._sessions.get(session.member.incarnation) is session:
                self._receive(session.member.incarnation, message)

    def _receive(self, incarnation: str, message: pb.MemberMessage) -> None:
        machine, now_s = self._machine, self._now_s()
        machine.heard(incarnation, now_s)
        match message.WhichOneof("message"):
            case "prepared":
                self._apply(machine.prepared(incarnation, message.prepared.generation, now_s))
            case "prepare_failed":
                failed = message.prepare_failed
                self._apply(
                    machine.prepare_failed(
                        incarnation, failed.generation, failed.reason, now_s, unmet=failed.unmet
                    )
                )
            case "abandoned":
                self._apply(machine.abandoned(incarnation, message.abandoned.generation, now_s))
            case "accuse":
                accuse = message.accuse
                if self._metrics:
                    self._metrics.accused(self._sessions[incarnation].member.role)
                self._apply(machine.accuse(incarnation, accuse.generation, accuse.reason, now_s))
            case "wake_request":
                wake = message.wake_request
                self._apply(machine.wake_request(incarnation, wake.generation, wake.epoch, now_s))
            case "load":
                self._loads.report(incarnation, load_from_proto(message.load), now_s)
                self._retire_weights()
            case "probe_report":
                report = message.probe_report
                self._apply(machine.probed(incarnation, report.round, report.reached, now_s))
            case "leaving":
                self._apply(machine.leaving(incarnation, now_s))
                self._look()

    def _retire_weights(self) -> None:
        """Has weights dropped that a reload has replaced, once no request needs them."""
        generation = self._machine.view().generation
        if generation is None or len(generation.weights) == 1:
            return
        members = [session.member for session in self._sessions.values()]
        if not old_weights_needed(generation, members, self._loads.loads):
            self._apply(self._machine.retire_weights(self._now_s()))

    # ------------------------------------------------------------------ actions

    def _apply(self, actions: tuple[Send, ...]) -> None:
        for action in actions:
            session = self._sessions.get(action.incarnation)
            if session is None:
                continue
            session.send(message_to_proto(action.message, self.topology))
            if isinstance(action.message, Exclude):
                logger.warning("%s is out: %s", session.member.label, action.message.reason)
                session.end()
                if action.message.reason != LEFT_AS_ASKED:
                    self._kill(session.member)
        if self._metrics:
            self._metrics.saw(self._machine.view().last_change, self._machine.take_deadline_misses())
        self._alarm.set()

    def _kill(self, member: MemberInfo) -> None:
        """Nobody counts on a process that is out: it may hold memory and a device, and its place."""
        if self._kill_process is not None:
            task = asyncio.create_task(asyncio.to_thread(self._kill_process, member))
            self._killing.add(task)
            task.add_done_callback(self._killed)

    def _killed(self, task: asyncio.Task[None]) -> None:
        self._killing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a process that is out could not be killed: %r", error)

    def _send_drain(self, session: Session) -> None:
        session.send(pb.CoordinatorMessage(drain=pb.Drain()))
        session.send(pb.CoordinatorMessage(topology=self.topology()))

    # ------------------------------------------------------------------ time

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _tick(self) -> None:
        self._apply(self._machine.tick(self._now_s()))
