"""The feed's pieces: plain dictionaries, one JSON line each.

| piece | when | what |
|---|---|---|
| `picture` | first, and when a reader was too slow | all of the others, figures of the last minutes |
| `topology` | when it changes | the state, who is there, what is wanted |
| `placement` | when it changes | which expert stands in which slot, `[layer][host][slot]` |
| `load` | once a second while it changes | rows within the load window, cache and queue of every member |
| `events` | when it changes | changes of generation, the one under way last |
| `figures` | once a second | tokens, gaps and waits of this gateway's streams, tokens/s of every router |
| `end` | last | why; the reader may come back at once |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.feed.stream_watch import StreamFigures, percentile
from expertmesh.proto.v1 import internal_pb2 as pb

Piece = dict[str, Any]

_KINDS = {pb.ROLE_GATEWAY: "gateway", pb.ROLE_ROUTER: "router", pb.ROLE_EXPERTS: "experts"}
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def line(kind: str, piece: Piece) -> bytes:
    """A piece as it is sent."""
    return f"{_dumps({'type': kind, **piece})}\n".encode()


def about_piece(core: GatewayCore, *, has_chat: bool, window_s: float, gateway: str) -> Piece:
    """What a picture tells of the model and the deployment; `gateway` is the incarnation that is asked."""
    card = core.card
    return {
        "model": card.name,
        "architecture": card.architecture,
        "max_context_tokens": card.max_context_tokens,
        "n_experts": card.n_experts,
        "has_tokenizer": core.tokenizer is not None,
        "has_chat": has_chat,
        "window_s": window_s,
        "gateway": gateway,
    }


def topology_piece(update: pb.TopologyUpdate) -> Piece:
    """Who is there; nothing that changes with load alone."""
    generation = update.generation
    outside = [entry.member for entry in update.outside]
    return {
        "generation": generation.number,
        "state": "draining" if update.draining else update.state,
        "reason": update.reason,
        "stale": update.stale,
        "routers": [_member(m) for m in generation.members if m.role == pb.ROLE_ROUTER],
        "hosts": [_member(m) for m in generation.members if m.role == pb.ROLE_EXPERTS],
        "gateways": [_member(m) for m in outside if m.role == pb.ROLE_GATEWAY],
        "joining": [_member(m) | {"kind": _KINDS[m.role]} for m in outside if m.role != pb.ROLE_GATEWAY],
        "weights": [{"version": w.version, "path": w.path} for w in generation.weights],
        "targets": _targets(update),
    }


def placement_piece(update: pb.TopologyUpdate) -> Piece:
    """Where the copies of experts stand."""
    layers = update.generation.placement
    return {
        "generation": update.generation.number,
        "layers": [[list(slots.experts) for slots in layer.hosts] for layer in layers],
    }


def load_piece(update: pb.TopologyUpdate) -> Piece:
    """What the members do. `expert_rows` is flat [layer, expert], `host_rows` flat [layer, host]."""
    return {
        "expert_rows": list(update.window_expert_rows),
        "host_rows": list(update.window_host_rows),
        "imbalance": round(update.imbalance, 4),
        "tokens": list(update.tokens),
        "cache_blocks": list(update.cache_blocks),
        "cache_blocks_used": list(update.cache_blocks_used),
        "running": list(update.running_requests),
        "queued": list(update.queued_requests),
        "outstanding": update.outstanding_requests,
        "outstanding_by_gateway": {
            entry.member.incarnation: entry.outstanding_requests
            for entry in update.outside
            if entry.member.role == pb.ROLE_GATEWAY
        },
        "loaded_bytes": update.loaded_bytes,
        "total_bytes": update.total_bytes,
    }


def events_piece(update: pb.TopologyUpdate) -> Piece:
    """What has happened, oldest first."""
    under_way = [update.change] if update.HasField("change") else []
    return {"events": [_event(change) for change in (*update.changes, *under_way)]}


def steadied(piece: Piece, before: Piece | None) -> Piece:
    """Events with the times that they were told with before: the coordinator works them out anew each time
    that it is asked, and they differ by a little."""
    told = {_identity(event): event for event in before["events"]} if before else {}
    return {"events": [told.get(_identity(event), event) for event in piece["events"]]}


def _identity(event: Piece) -> tuple[object, ...]:
    return tuple(event[key] for key in ("generation", "kind", "outcome", "reason", "routers", "experts"))


def figures_piece(
    unix_s: float, figures: StreamFigures, n_open: int, tokens_per_s: Mapping[str, float]
) -> Piece:
    """What this gateway's streams brought within the last second, and the routers' speed by incarnation."""
    gaps_ms, waits_ms = figures.gaps_ms, figures.first_waits_ms
    return {
        "unix_s": round(unix_s, 3),
        "tokens": figures.n_tokens,
        "open": n_open,
        "gaps": len(gaps_ms),
        "gap_p50_ms": _rounded(percentile(gaps_ms, 0.5)),
        "gap_p99_ms": _rounded(percentile(gaps_ms, 0.99)),
        "gap_max_ms": _rounded(gaps_ms[-1] if gaps_ms else None),
        "first_p50_ms": _rounded(percentile(waits_ms, 0.5)),
        "router_tokens_per_s": {name: round(rate, 1) for name, rate in tokens_per_s.items()},
    }


def _member(member: pb.MemberSpec) -> Piece:
    return {
        "incarnation": member.incarnation,
        "node": member.node,
        "pid": member.pid,
        "device": member.device,
        "replica": member.replica_id,
    }


def _targets(update: pb.TopologyUpdate) -> Piece | None:
    if not update.HasField("targets"):
        return None
    targets = update.targets
    return {"gateways": targets.gateway, "routers": targets.router, "experts": targets.experts}


def _event(change: pb.Change) -> Piece:
    return {
        "generation": change.generation,
        "kind": change.kind,
        "reason": change.reason,
        "outcome": change.outcome,
        "seconds": round(change.seconds, 2),
        "unix_s": round(change.unix_s, 1),
        "routers": change.routers,
        "experts": change.experts,
        "copies_placed": change.copies_placed,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
