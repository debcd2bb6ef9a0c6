"""What the coordinator tells gateways: the state, the live generation and its members' load figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

from expertmesh.cluster.load import Load, LoadTable
from expertmesh.cluster.state import View
from expertmesh.cluster.types import Change, MemberInfo
from expertmesh.cluster.wire import generation_to_proto, member_to_proto
from expertmesh.proto.v1 import internal_pb2 as pb


def topology_update(
    view: View,
    loads: LoadTable,
    *,
    draining: bool,
    targets: dict[str, int] | None,
    now_s: float,
    members: Sequence[MemberInfo] = (),
) -> pb.TopologyUpdate:
    """The message for a view of the state machine; `now_s` is the time on the machine's clock, `members`
    are all that are connected."""
    update = pb.TopologyUpdate(
        state=view.state.public,
        reason=view.reason,
        draining=draining,
        outstanding_requests=loads.outstanding_requests,
    )
    epoch_s = time.time() - now_s
    update.loaded_bytes, update.total_bytes = loads.loading
    if targets is not None:
        update.targets.CopyFrom(pb.ScaleTargets(**targets))
    if view.last_change is not None:
        update.last_change.CopyFrom(_change(view.last_change, now_s, epoch_s))
    if view.change is not None:
        update.change.CopyFrom(_change(view.change, now_s, epoch_s))
    update.changes.extend(_change(change, now_s, epoch_s) for change in view.changes)
    by_incarnation = loads.loads
    for member in members:
        if view.generation is None or not view.generation.has(member.incarnation):
            load = by_incarnation.get(member.incarnation, Load())
            update.outside.add(
                member=member_to_proto(member), outstanding_requests=load.outstanding_requests
            )
    if view.generation:
        update.generation.CopyFrom(generation_to_proto(view.generation))
        for load in loads.members(view.generation):
            update.tokens.append(load.tokens)
            update.decode_profiles.add(steps=load.decode_steps, part_ms=load.decode_part_ms)
            update.cache_blocks.append(load.cache_blocks)
            update.cache_blocks_used.append(load.cache_blocks_used)
            update.running_requests.append(load.running_requests)
            update.queued_requests.append(load.queued_requests)
            update.draft_tokens.append(load.draft_tokens)
            update.accepted_tokens.append(load.accepted_tokens)
        update.expert_rows.extend(loads.expert_rows(view.generation))
        update.window_expert_rows.extend(chain.from_iterable(loads.window_expert_rows() or ()))
        update.window_host_rows.extend(loads.window_host_rows(view.generation))
        update.imbalance = loads.imbalance(view.generation)
    return update


def _change(change: Change, now_s: float, epoch_s: float) -> pb.Change:
    under_way = change.outcome == "under way"
    return pb.Change(
        generation=change.generation,
        kind=change.kind,
        reason=change.reason,
        outcome=change.outcome,
        seconds=now_s - change.ended_s if under_way else change.seconds,
        unix_s=epoch_s + change.ended_s,
        routers=change.n_routers,
        experts=change.n_experts,
        copies_placed=change.n_copies_placed,
    )
