"""Between the cluster's values and the messages of proto/v1/internal.proto, both ways."""

from __future__ import annotations

from expertmesh.cluster.load import Load
from expertmesh.cluster.types import AS_CONFIGURED, Generation, MemberInfo, Placement, Role, Weights
from expertmesh.proto.v1 import internal_pb2 as pb

ROLE_TO_PROTO = {
    Role.GATEWAY: pb.ROLE_GATEWAY,
    Role.ROUTER: pb.ROLE_ROUTER,
    Role.EXPERTS: pb.ROLE_EXPERTS,
}
ROLE_FROM_PROTO = {number: role for role, number in ROLE_TO_PROTO.items()}


class WireError(ValueError):
    """A message of another process that says what it must not."""


def hello_to_proto(
    member: MemberInfo,
    generation: int = 0,
    seen_generation: int = 0,
    next_generation: int = 0,
    running: Generation | None = None,
    epoch: int = 0,
) -> pb.Hello:
    """The first message of a member's stream.

    `generation` is the one that it runs, or prepares while it runs none (0: none), `next_generation` the
    one that it prepares beside that, `seen_generation` the highest that it was ever asked to prepare,
    `running` the whole of the one that it runs, `epoch` the epoch that it knows of that.
    """
    return pb.Hello(
        role=ROLE_TO_PROTO[member.role],
        incarnation=member.incarnation,
        node=member.node,
        pid=member.pid,
        device=member.device,
        stream_address=member.stream_address,
        store_address=member.store_address,
        replica_id=member.replica_id,
        generation=generation,
        seen_generation=seen_generation,
        next_generation=next_generation,
        slots=member.slots,
        probe_address=member.probe_address,
        running=generation_to_proto(running) if running else None,
        epoch=epoch,
    )


def member_from_proto(message: pb.Hello | pb.MemberSpec) -> MemberInfo:
    """The member that a Hello or a generation's entry describes; WireError when it names no role."""
    role = ROLE_FROM_PROTO.get(message.role)
    if role is None or not message.incarnation:
        raise WireError(f"a member must have a role and an incarnation, got {message!s:.200}")
    return MemberInfo(
        incarnation=message.incarnation,
        role=role,
        node=message.node,
        pid=message.pid,
        device=message.device,
        stream_address=message.stream_address,
        store_address=message.store_address,
        replica_id=message.replica_id,
        slots=message.slots,
        probe_address=message.probe_address,
    )


def member_to_proto(member: MemberInfo) -> pb.MemberSpec:
    """A member as a generation's entry."""
    return pb.MemberSpec(
        incarnation=member.incarnation,
        role=ROLE_TO_PROTO[member.role],
        node=member.node,
        pid=member.pid,
        device=member.device,
        stream_address=member.stream_address,
        store_address=member.store_address,
        replica_id=member.replica_id,
        slots=member.slots,
        probe_address=member.probe_address,
    )


def generation_to_proto(generation: Generation) -> pb.GenerationSpec:
    """A generation as it is sent to members and gateways."""
    return pb.GenerationSpec(
        number=generation.number,
        members=[member_to_proto(m) for m in generation.members],
        placement=[
            pb.LayerSlots(layer=layer, hosts=[pb.Slots(experts=experts) for experts in hosts])
            for layer, hosts in enumerate(generation.placement.layers)
        ],
        store_address=generation.store_address,
        weights=[pb.Weights(version=w.version, path=w.path) for w in generation.weights],
    )


def generation_from_proto(message: pb.GenerationSpec) -> Generation:
    """A generation as it was sent; WireError when a member names no role."""
    return Generation(
        number=message.number,
        members=tuple(member_from_proto(m) for m in message.members),
        placement=Placement(
            tuple(tuple(tuple(slots.experts) for slots in layer.hosts) for layer in message.placement)
        ),
        store_address=message.store_address,
        weights=tuple(Weights(w.version, w.path) for w in message.weights) or AS_CONFIGURED,
    )


def load_to_proto(load: Load) -> pb.LoadReport:
    """A member's load figures."""
    return pb.LoadReport(
        tokens=load.tokens,
        expert_rows=load.expert_rows,
        outstanding_requests=load.outstanding_requests,
        decode_profile=pb.StepProfile(steps=load.decode_steps, part_ms=load.decode_part_ms),
        cache_blocks=load.cache_blocks,
        cache_blocks_used=load.cache_blocks_used,
        loaded_bytes=load.loaded_bytes,
        total_bytes=load.total_bytes,
        host_rows_generation=load.host_rows_generation,
        host_rows=load.host_rows,
        running_requests=load.running_requests,
        queued_requests=load.queued_requests,
        queued_tokens=load.queued_tokens,
        busy_s=load.busy_s,
        oldest_weights=load.oldest_weights,
        newest_weights=load.newest_weights,
        draft_tokens=load.draft_tokens,
        accepted_tokens=load.accepted_tokens,
    )


def load_from_proto(message: pb.LoadReport) -> Load:
    """A member's load figures as they were sent."""
    return Load(
        tokens=message.tokens,
        expert_rows=tuple(message.expert_rows),
        outstanding_requests=message.outstanding_requests,
        decode_steps=message.decode_profile.steps,
        decode_part_ms=dict(message.decode_profile.part_ms),
        cache_blocks=message.cache_blocks,
        cache_blocks_used=message.cache_blocks_used,
        loaded_bytes=message.loaded_bytes,
        total_bytes=message.total_bytes,
        host_rows_generation=message.host_rows_generation,
        host_rows=tuple(message.host_rows),
        running_requests=message.running_requests,
        queued_requests=message.queued_requests,
        queued_tokens=message.queued_tokens,
        busy_s=message.busy_s,
        oldest_weights=message.oldest_weights,
        newest_weights=message.newest_weights,
        draft_tokens=message.draft_tokens,
        accepted_tokens=message.accepted_tokens,
    )
