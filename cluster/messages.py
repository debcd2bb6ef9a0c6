"""What the state machine has members told, as protobuf has it."""

from __future__ import annotations

from collections.abc import Callable

from expertmesh.cluster.actions import (
    Abandon,
    Exclude,
    Live,
    Message,
    Prepare,
    Probe,
    PublishTopology,
    Switch,
    Wake,
)
from expertmesh.cluster.wire import generation_to_proto
from expertmesh.proto.v1 import internal_pb2 as pb


def message_to_proto(message: Message, topology: Callable[[], pb.TopologyUpdate]) -> pb.CoordinatorMessage:
    """What goes into a member's stream; `topology` gives the deployment's state where it is told."""
    match message:
        case Prepare(generation):
            return pb.CoordinatorMessage(prepare=pb.Prepare(generation=generation_to_proto(generation)))
        case Live(number, epoch):
            return pb.CoordinatorMessage(live=pb.Live(generation=number, epoch=epoch))
        case Switch(number, successor):
            switch = pb.Switch(from_generation=number, to_generation=successor)
            return pb.CoordinatorMessage(switch=switch)
        case Abandon(number, reason):
            return pb.CoordinatorMessage(abandon=pb.Abandon(generation=number, reason=reason))
        case Wake(number, epoch):
            return pb.CoordinatorMessage(wake=pb.Wake(generation=number, epoch=epoch))
        case Exclude(reason):
            return pb.CoordinatorMessage(excluded=pb.Excluded(reason=reason))
        case Probe(number, addresses, timeout_s):
            probe = pb.Probe(round=number, addresses=dict(addresses), timeout_s=timeout_s)
            return pb.CoordinatorMessage(probe=probe)
        case PublishTopology():
            return pb.CoordinatorMessage(topology=topology())
