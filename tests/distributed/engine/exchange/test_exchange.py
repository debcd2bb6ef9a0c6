"""The sharded exchange against the reference, over enumerated routings and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from expertmesh.engine.counting import RoutingCounter
from expertmesh.engine.exchange import form
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.header import StepAgreement, StepHeader
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.reference import ReferenceExchange
from expertmesh.engine.exchange.rendezvous import Transport
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.exchange.sharded import ShardedExchange

N_EXPERTS, TOP_K, HIDDEN, N_LAYERS = 7, 3, 10, 2
LAYOUTS = [(1, 1, 0), (1, 2, 0), (2, 3, 0), (3, 1, 0), (1, 2, 5), (2, 3, 8)]
"""Routers, expert hosts, and slots of a layer for second and third copies."""


class ScalingExperts:
    """Expert e of layer l multiplies by 1 + l + e / 8, exactly in fp32 and bf16 alike."""

    def __init__(self, slots: list[tuple[int, ...]]) -> None:
        self.slots = slots

    def forward(self, moe_layer: int, x_RD: Tensor, rows_per_slot: list[int]) -> Tensor:
        assert len(rows_per_slot) == len(self.slots[moe_layer])
        parts = x_RD.split(list(rows_per_slot))
        experts = self.slots[moe_layer]
        return torch.cat([expert(moe_layer, e, x) for e, x in zip(experts, parts, strict=True)])


def expert(moe_layer: int, index: int, x_RD: Tensor) -> Tensor:
    return x_RD * (1 + moe_layer + index / 8)


def make_layout(n_routers: int, n_hosts: int, n_redundant: int) -> RankLayout:
    """Uneven slots: 7 experts do not divide, the layers differ, and only layer 1 has copies."""
    layers = []
    for layer in range(N_LAYERS):
        n_slots = N_EXPERTS + (n_redundant if layer == 1 else 0)
        order = [(e * 3 + layer) % N_EXPERTS for e in range(n_slots)]
        layers.append(tuple(tuple(order[h::n_hosts]) for h in range(n_hosts)))
    members = [f"R{r}" for r in range(n_routers)] + [f"E{h}" for h in range(n_hosts)]
    return RankLayout(1, n_routers, tuple(layers), tuple(members))


def routings(router: int) -> list[tuple[Tensor, Tensor]]:
    """(x, ids) for every case; the routers' batches differ in size, and some are empty."""
    generator = torch.Generator().manual_seed(router)

    def batch(n: int, ids: Callable[[int], list[int]]) -> tuple[Tensor, Tensor]:
        x_TD = torch.randn(n, HIDDEN, generator=generator)
        ids_TK = torch.tensor([ids(t) for t in range(n)], dtype=torch.int64).view(n, TOP_K)
        return x_TD, ids_TK

    def random(_: int) -> list[int]:
        return torch.randperm(N_EXPERTS, generator=generator)[:TOP_K].tolist()

    return [
        batch(5 + router, random),
        batch(33, lambda _: [0, 1, 2]),  # skewed: three experts, perhaps one host
        batch(0, random),  # empty everywhere
        batch(4 if router == 0 else 0, random),  # one router alone has work
        batch(1, lambda _: [6, 5, 4]),
        batch(17 * (router + 1), lambda t: [t % 7, (t + 1) % 7, (t + 3) % 7]),
    ]


def agree(communicator: Communicator, step: int, tokens: int) -> StepAgreement:
    own = StepHeader(generation=1, step=step, tokens=tokens)
    agreement = StepAgreement(
        tuple(StepHeader.decode(row) for row in communicator.all_gather(own.encode()))
    )
    assert agreement.mismatch(own) is None
    return agreement


def weights_for(ids_TK: Tensor) -> Tensor:
    return torch.softmax(ids_TK.float(), dim=1) * 2.5


def exchange_rank(
    communicator: Communicator,
    n_routers: int,
    n_hosts: int,
    n_redundant: int,
    dtype: torch.dtype,
    exact: bool,
) -> Any:
    """Runs every case; routers give (results by case and layer, rows by layer and host), hosts the rows
    that they computed by layer."""
    if exact:
        form.EXACT_SAVES_BYTES = -1
    layout = make_layout(n_routers, n_hosts, n_redundant)
    rows = RowFormat(HIDDEN, TOP_K, dtype)
    rank = communicator.rank
    if rank >= n_routers:
        slots = [layer[rank - n_routers] for layer in layout.slots]
        host = HostExchange(communicator, layout, rows, [ScalingExperts(slots)])
        pairs = [0] * N_LAYERS
        for step in range(len(routings(0))):
            host.begin(agree(communicator, step, 0))
            for due in host.due:
                pairs[due.moe_layer] += host.serve(due)
        return pairs
    exchange = ShardedExchange(communicator, layout, rows, n_experts=N_EXPERTS, n_moe_layers=N_LAYERS)
    counter = RoutingCounter(N_LAYERS, N_EXPERTS, communicator.device)
    results = []
    for step, (x_TD, ids_TK) in enumerate(routings(rank)):
        exchange.begin(agree(communicator, step, len(x_TD)))
        if len(x_TD) == 0:
            exchange.finish()
            continue
        watched = counter.watch(exchange)
        for layer in range(N_LAYERS):
            handle = watched.dispatch(layer, x_TD.to(dtype), ids_TK)
            results.append(watched.combine(handle, weights_for(ids_TK)).numpy())
        counter.commit()
    return results, counter.host_rows()


@pytest.mark.parametrize("transport", ["local", "gloo"])
@pytest.mark.parametrize("exact", [False, True], ids=["capacity", "exact"])
@pytest.mark.parametrize(("n_routers", "n_hosts", "n_redundant"), LAYOUTS)
def test_sharded_equals_reference(
    run_ranks: Callable[..., list[Any]],
    n_routers: int,
    n_hosts: int,
    n_redundant: int,
    exact: bool,
    transport: Transport,
) -> None:
    dtype = torch.bfloat16 if exact else torch.float32
    ranks = run_ranks(
        exchange_rank,
        n_routers + n_hosts,
        n_routers,
        n_hosts,
        n_redundant,
        dtype,
        exact,
        transport=transport,
    )
    reference = ReferenceExchange(expert)
    n_pairs = 0
    counted_LH = torch.zeros(N_LAYERS, n_hosts, dtype=torch.int64)
    for router in range(n_routers):
        results, (generation, host_rows) = ranks[router]
        assert generation == 1
        counted_LH += torch.tensor(host_rows).view(N_LAYERS, n_hosts)
        expected = []
        for x_TD, ids_TK in routings(router):
            n_pairs += ids_TK.numel() * N_LAYERS
            if len(x_TD):
                for layer in range(N_LAYERS):
                    handle = reference.dispatch(layer, x_TD.to(dtype), ids_TK)
                    expected.append(reference.combine(handle, weights_for(ids_TK)))
        assert len(expected) == len(results)
        for got, want in zip(results, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-6, atol=1e-6)
    computed_HL = torch.tensor(ranks[n_routers:])
    assert computed_HL.sum() == n_pairs
    assert torch.equal(counted_LH, computed_HL.T), "routers count what hosts compute"


def test_form_is_decided_by_size_and_hosts() -> None:
    assert form.choose_form([32, 0, 0], n_hosts=2, top_k=4, row_bytes=2064) == "capacity"
    assert form.choose_form([4096] + [0] * 32, n_hosts=32, top_k=8, row_bytes=14384) == "exact"
    assert math.isclose(1 - (1 - 1 / 2) ** 4, 0.9375)


def test_layout_names_an_expert_without_a_slot() -> None:
    layout = RankLayout(1, 1, (((0, 1), (3,)),), ("R0", "E0", "E1"))
    with pytest.raises(ValueError, match=r"experts \[2\] have no slot"):
        layout.copies(0, 4)
