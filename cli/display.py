"""What a deployment's user reads in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.models.spec import ModelSpec
from expertmesh.proto.v1 import inference_pb2 as pb

LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = ("", "0.0.0.0", "::")


def http_url(config: DeploymentConfig) -> str:
    """Where HTTP clients on this machine call."""
    return f"{'https' if config.http.tls_cert_file else 'http'}://{http_address(config)}"


def http_address(config: DeploymentConfig) -> str:
    """HOST:PORT at which this machine reaches the HTTP proxy."""
    host = LOOPBACK if config.http.host in EVERY_INTERFACE else config.http.host
    return f"{host}:{config.http.port}"


def grpc_address(config: DeploymentConfig) -> str:
    """HOST:PORT at which this machine reaches the gRPC proxy."""
    return f"{LOOPBACK}:{config.grpc.port}"


def model_line(config: DeploymentConfig, spec: ModelSpec) -> str:
    """One line about the checkpoint."""
    dtype = spec.dtype if config.model.dtype == "auto" else config.model.dtype
    experts = (
        f", {len(spec.moe_layers) - spec.n_draft_moe_layers} with {spec.n_experts} experts"
        if spec.n_experts
        else ""
    )
    return f"{config.served_name}: {spec.architecture}, {len(spec.layers)} layers{experts}, {dtype}"


def shape_line(config: DeploymentConfig) -> str:
    """One line about the processes."""
    hosts = (
        "fused (the experts live in the routers)"
        if config.fused
        else count(config.experts.replicas, "expert host")
    )
    return (
        f"{count(config.gateway.replicas, 'gateway')}, {count(config.router.replicas, 'router')}, {hosts}"
    )


def waiting_line(topology: pb.Topology | None, replicas: Mapping[str, tuple[int, int]]) -> str:
    """What a start waits for.

    Args:
        topology: the gateway's word, once it answers.
        replicas: for each Serve deployment (running, wanted).
    """
    parts = [f"{name} {running}/{wanted}" for name, (running, wanted) in replicas.items()]
    if topology is not None and topology.total_bytes:
        loaded, total = (n_bytes / 1e6 for n_bytes in (topology.loaded_bytes, topology.total_bytes))
        parts.append(f"weights {loaded:.0f} of {total:.0f} MB")
    if topology is not None:
        reason = f": {topology.reason}" if topology.reason else ""
        parts.append(f"generation {topology.state}{reason}")
    return "loading weights and forming a generation (" + ", ".join(parts) + ")"


def scaling_line(topology: pb.Topology, what: str, n_replicas: int) -> str:
    """What a change of the number of routers or expert hosts waits for."""
    members = topology.routers if what == "routers" else topology.experts
    parts = [f"{what} {len(members)}/{n_replicas}", f"generation {topology.generation} {topology.state}"]
    if topology.reason:
        parts.append(topology.reason)
    if topology.HasField("change"):
        parts.append(change_text(topology.change))
    elif topology.last_change.outcome == "rolled back":
        parts.append(f"last try: {change_text(topology.last_change)}")
    return ", ".join(parts)


def change_text(change: pb.Change) -> str:
    """A change of generation in words."""
    how = "under way for" if change.outcome == "under way" else f"{change.outcome} after"
    reason = f": {change.reason}" if change.reason else ""
    return f"{change.kind} to generation {change.generation}, {how} {change.seconds:.2f} s{reason}"


def change_lines(topology: pb.Topology, now_unix_s: float) -> list[str]:
    """What has changed last, what changes now, and how even the load is; empty when nothing is known."""
    lines = []
    if topology.HasField("last_change"):
        last = topology.last_change
        ago = age_text(max(now_unix_s - last.unix_s, 0.0))
        lines.append(f"last change ({ago} ago): {change_text(last)}")
    if topology.HasField("change"):
        lines.append(f"change: {change_text(topology.change)}")
    if len(topology.weights) > 1 or (topology.weights and topology.weights[-1].version > 1):
        lines.append(f"weights: {weights_text(topology.weights)}")
    if topology.imbalance:
        lines.append(f"load: {imbalance_text(topology.imbalance)}")
    return lines


def weights_text(weights: Sequence[pb.Weights]) -> str:
    """The versions that are held; new requests begin with the last one."""
    *older, newest = [f"version {w.version} ({w.path or 'as configured'})" for w in weights]
    return f"{newest}; {', '.join(older)} until the requests that began with it end" if older else newest


def imbalance_text(imbalance: float) -> str:
    """How even the expert hosts' load is."""
    return f"the most loaded expert host has {imbalance:.2f} times the mean"


def age_text(seconds: float) -> str:
    """`42 s`, `12 min`, `3 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def loaded_fraction(topology: pb.Topology | None) -> float | None:
    """How much of the weights is loaded; None before anybody loads."""
    if topology is None or not topology.total_bytes:
        return None
    return topology.loaded_bytes / topology.total_bytes


def print_ready(console: Console, config: DeploymentConfig, dashboard_url: str) -> None:
    """Endpoints and example calls."""
    grpc, http, name = grpc_address(config), http_url(config), config.served_name
    body = json.dumps({"prompt": "The SELECT statement", "params": {"max_tokens": 32}})
    completion = json.dumps({"model": name, "prompt": "The SELECT statement", "max_tokens": 32})
    openai = (
        f"from openai import OpenAI; client = OpenAI(base_url='{http}/v1', api_key='-'); "
        f"print(client.completions.create(model='{name}', prompt='The SELECT statement').choices[0].text)"
    )
    lines = [
        f"[bold]gRPC[/]       {grpc}",
        f"[bold]HTTP[/]       {http}/v1",
    ]
    if config.access.key_file is not None:
        lines.append("[bold]API key[/]    needed: --api-key-file, or Authorization: Bearer KEY")
    if dashboard_url:
        lines.append(f"[bold]dashboard[/]  {dashboard_url}")
    lines += [
        "",
        "[bold]Try it[/]",
        escape(f"  expertmesh generate --address {grpc} --prompt 'The SELECT statement' --max-tokens 32"),
        escape(f"  grpcurl -plaintext -d '{body}' {grpc} expertmesh.v1.Inference/GenerateStream"),
        escape(f"  curl {http}/v1/completions -H 'Content-Type: application/json' -d '{completion}'"),
        escape(f'  python -c "{openai}"'),
        "",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def host_shares(before: Sequence[pb.Member], after: Sequence[pb.Member]) -> list[tuple[int, int, float]]:
    """(rank, token-expert rows, share of all) that each expert host served between two topologies."""
    known = {member.incarnation: member.tokens for member in before}
    rows = [(member.rank, member.tokens - known.get(member.incarnation, 0)) for member in after]
    total = sum(n for _, n in rows)
    return [(rank, n, n / total if total else 0.0) for rank, n in rows]


def count(n: int, what: str) -> str:
    """`1 router`, `2 routers`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
