"""What clients see of the cluster: the live generation, its members and their load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expertmesh.proto.v1 import inference_pb2 as public
from expertmesh.proto.v1 import internal_pb2 as pb


def public_topology(update: pb.TopologyUpdate) -> public.Topology:
    """The public message for the coordinator's word; members and placement of a live generation alone."""
    topology = public.Topology(
        state=update.state,
        reason=update.reason,
        stale=update.stale,
        loaded_bytes=update.loaded_bytes,
        total_bytes=update.total_bytes,
    )
    if update.HasField("last_change"):
        topology.last_change.CopyFrom(_public_change(update.last_change))
    if update.HasField("change"):
        topology.change.CopyFrom(_public_change(update.change))
    if update.state != "running":
        return topology
    generation = update.generation
    topology.generation = generation.number
    topology.imbalance = update.imbalance
    topology.weights.extend(public.Weights(version=w.version, path=w.path) for w in generation.weights)
    n_routers = sum(member.role == pb.ROLE_ROUTER for member in generation.members)
    for rank, member in enumerate(generation.members):
        shown = public.Member(
            rank=rank,
            node=member.node,
            pid=member.pid,
            incarnation=member.incarnation,
            device=member.device,
            tokens=_at(update.tokens, rank),
            cache_blocks=_at(update.cache_blocks, rank),
            cache_blocks_used=_at(update.cache_blocks_used, rank),
            draft_tokens=_at(update.draft_tokens, rank),
            accepted_tokens=_at(update.accepted_tokens, rank),
        )
        (topology.routers if member.role == pb.ROLE_ROUTER else topology.experts).append(shown)
    for layer in generation.placement:
        hosts = [
            public.HostSlots(rank=n_routers + i, experts=slots.experts)
            for i, slots in enumerate(layer.hosts)
        ]
        topology.placement.append(public.LayerPlacement(layer=layer.layer, hosts=hosts))
    return topology


def public_expert_load(update: pb.TopologyUpdate, n_experts: int) -> public.ExpertLoad:
    """Token-expert rows of each MoE layer's `n_experts` logical experts and of its hosts, out of the flat
    figures."""
    running = update.state == "running"
    n_hosts = sum(member.role == pb.ROLE_EXPERTS for member in update.generation.members)
    load = public.ExpertLoad(generation=update.generation.number if running else 0)
    for layer in range(len(update.expert_rows) // n_experts if n_experts else 0):
        load.layers.add(
            layer=layer,
            tokens=_of_layer(update.expert_rows, layer, n_experts),
            window_tokens=_of_layer(update.window_expert_rows, layer, n_experts),
            window_host_tokens=_of_layer(update.window_host_rows, layer, n_hosts),
        )
    return load


def topology_json(update: pb.TopologyUpdate, n_experts: int) -> dict[str, Any]:
    """The body of `GET /v1/topology`."""
    topology = public_topology(update)
    return {
        "generation": topology.generation,
        "state": topology.state,
        "reason": topology.reason,
        "stale": topology.stale,
        "last_change": _change_json(topology.last_change) if topology.HasField("last_change") else None,
        "change": _change_json(topology.change) if topology.HasField("change") else None,
        "imbalance": topology.imbalance,
        "weights": [{"version": w.version, "path": w.path} for w in topology.weights],
        "routers": [_member_json(member, update) for member in topology.routers],
        "experts": [_member_json(member, update) for member in topology.experts],
        "placement": [
            {
                "layer": layer.layer,
                "hosts": [{"rank": host.rank, "experts": list(host.experts)} for host in layer.hosts],
            }
            for layer in topology.placement
        ],
        "expert_tokens": [
            {
                "layer": layer.layer,
                "tokens": list(layer.tokens),
                "window_tokens": list(layer.window_tokens),
                "window_host_tokens": list(layer.window_host_tokens),
            }
            for layer in public_expert_load(update, n_experts).layers
        ],
    }


def _member_json(member: public.Member, update: pb.TopologyUpdate) -> dict[str, Any]:
    profiles = update.decode_profiles
    profile = profiles[member.rank] if member.rank < len(profiles) else pb.StepProfile()
    return {
        "rank": member.rank,
        "node": member.node,
        "pid": member.pid,
        "incarnation": member.incarnation,
        "device": member.device,
        "tokens": member.tokens,
        "cache_blocks": member.cache_blocks,
        "cache_blocks_used": member.cache_blocks_used,
        "draft_tokens": member.draft_tokens,
        "accepted_tokens": member.accepted_tokens,
        "decode_profile": {"steps": profile.steps, "part_ms": dict(profile.part_ms)},
    }


def _public_change(change: pb.Change) -> public.Change:
    return public.Change(
        generation=change.generation,
        kind=change.kind,
        reason=change.reason,
        outcome=change.outcome,
        seconds=change.seconds,
        unix_s=change.unix_s,
    )


def _change_json(change: public.Change) -> dict[str, Any]:
    return {
        "generation": change.generation,
        "kind": change.kind,
        "reason": change.reason,
        "outcome": change.outcome,
        "seconds": change.seconds,
        "unix_s": change.unix_s,
    }


def _of_layer(flat: Sequence[int], layer: int, n: int) -> Sequence[int]:
    return flat[layer * n : (layer + 1) * n]


def _at(figures: Sequence[int], rank: int) -> int:
    """A member's figure; 0 before the coordinator has told any."""
    return figures[rank] if rank < len(figures) else 0
