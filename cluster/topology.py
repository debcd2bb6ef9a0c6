"""What the coordinator tells gateways: the state, the live generation and its members' load figures."""

from __future__ import annotations

import time
from itertools import chain

from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.state import View
from expertmesh.cluster.types import Change
from expertmesh.cluster.wire import generation_to_proto
from expertmesh.proto.v1 import internal_pb2 as pb


def topology_update(
    view: View, loads: LoadTable, *, draining: bool, targets: dict[str, int] | None, now_s: float
) -> pb.TopologyUpdate:
    """The message for a view of the state machine; `now_s` is the time on the machine's clock."""
    update = pb.TopologyUpdate(
        state=view.state.public,
        reason=view.reason,
        draining=draining,
        outstanding_requests=loads.outstanding_requests,
    )
    update.loaded_bytes, update.total_bytes = loads.loading
    if targets is not None:
        update.targets.CopyFrom(pb.ScaleTargets(**targets))
    if view.last_change is not None:
        update.last_change.CopyFrom(_change(view.last_change, now_s))
    if view.change is not None:
        update.change.CopyFrom(_change(view.change, now_s))
    if view.generation:
        update.generation.CopyFrom(generation_to_proto(view.generation))
        for load in loads.members(view.generation):
            update.tokens.append(load.tokens)
            update.decode_profiles.add(steps=load.decode_steps, part_ms=load.decode_part_ms)
            update.cache_blocks.append(load.cache_blocks)
            update.cache_blocks_used.append(load.cache_blocks_used)
        update.expert_rows.extend(loads.expert_rows(view.generation))
        update.window_expert_rows.extend(chain.from_iterable(loads.window_expert_rows() or ()))
        update.window_host_rows.extend(loads.window_host_rows(view.generation))
        update.imbalance = loads.imbalance(view.generation)
    return update


def _change(change: Change, now_s: float) -> pb.Change:
    under_way = change.outcome == "under way"
    return pb.Change(
        generation=change.generation,
        kind=change.kind,
        reason=change.reason,
        outcome=change.outcome,
        seconds=now_s - change.ended_s if under_way else change.seconds,
        unix_s=time.time() - (now_s - change.ended_s),
    )
