"""Evens out a placement by single exchanges, so that few experts have to be loaded.

Every exchange is chosen by what stands where alone, and makes the placement more even. So stopping early
and going on later takes the same way, and an even placement stays as it is.

Shapes: L layers, E logical experts, H hosts, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from expertmesh.cluster.placement.eplb import Floats, Ints
from expertmesh.cluster.placement.pack import Bools, host_rows

ROUNDING = 1e-9
"""Relative differences that count as none."""
N_LIKELY = 6
"""Hosts, and experts, that a search for a copy tries first; all others only when it finds none."""
WORTHWHILE = 5e-4
"""Of a host's mean load over all layers: what an exchange for their sake must bring at least."""


Exchange = tuple[tuple[int, int, int], ...]
"""(host, expert dropped, expert loaded): each takes over the other's slot on the host."""
Choice = tuple[float, Exchange]
"""What an exchange gains for each load, and the exchange."""


def even_layer(
    has_HE: Bools, load_E: Floats, limit: float, nodes: Sequence[int], within_nodes: bool
) -> Iterator[Exchange | None]:
    """Exchanges that take a layer's most loaded host down to a limit; None at the end if they cannot.

    Each trades an expert of the most loaded host for a less loaded one of another, or one expert's copy
    for a copy of another.

    Args:
        has_HE: which host holds which expert; is changed with every exchange.
        load_E: the experts' loads.
        limit: a load.
        nodes: each host's node, counted from 0.
        within_nodes: experts may not go to another node; otherwise copies of one keep to different nodes.
    """
    while True:
        rows_H = host_rows(has_HE, load_E)
        if rows_H.max() <= limit * (1 + ROUNDING):
            return
        least_gain = ROUNDING * rows_H.mean() ** 2
        best = max(
            _best_swap(has_HE, load_E, rows_H, nodes, within_nodes),
            _best_copy(has_HE, load_E, rows_H, nodes, within_nodes, N_LIKELY),
            key=lambda choice: choice[0],
        )
        if best[0] <= least_gain:
            best = _best_copy(has_HE, load_E, rows_H, nodes, within_nodes, len(load_E))
        if best[0] <= least_gain:
            yield None
            return
        for host, dropped, loaded in best[1]:
            has_HE[host, dropped], has_HE[host, loaded] = False, True
        yield best[1]


def _best_swap(
    has_HE: Bools, load_E: Floats, rows_H: Floats, nodes: Sequence[int], within_nodes: bool
) -> Choice:
    rate_E = load_E / has_HE.sum(axis=0)
    full, mean = int(rows_H.argmax()), rows_H.mean()
    mine = np.flatnonzero(has_HE[full])
    hosts, theirs = np.nonzero(has_HE & (np.arange(len(rows_H)) != full)[:, None])
    falls = rate_E[mine][:, None] - rate_E[theirs][None]
    allowed = (falls > 0) & ~has_HE[hosts[None], mine[:, None]] & ~has_HE[full, theirs][None]
    here_H = np.asarray(nodes) == nodes[full]
    may_go_HE = _may_take(has_HE, nodes, within_nodes)
    allowed &= here_H[hosts][None] | (may_go_HE[hosts[None], mine[:, None]] & may_go_HE[full, theirs][None])
    gain = (
        _excess(rows_H[full] - mean)
        + _excess(rows_H[hosts] - mean)
        - _excess(rows_H[full] - falls - mean)
        - _excess(rows_H[hosts] + falls - mean)
    )
    gain = np.where(allowed, gain, -np.inf)
    if not gain.size:
        return -np.inf, ()
    i, j = np.unravel_index(int(gain.argmax()), gain.shape)
    given, taken, host = int(mine[i]), int(theirs[j]), int(hosts[j])
    return float(gain[i, j]) / 2, ((full, given, taken), (host, taken, given))


def _best_copy(
    has_HE: Bools,
    load_E: Floats,
    rows_H: Floats,
    nodes: Sequence[int],
    within_nodes: bool,
    n_likely: int,
) -> Choice:
    """A further copy of an expert of the most loaded host, or of another there, in the slot of a copy.

    Tried are the `n_likely` least loaded hosts and the most loaded one; there as many of the least loaded
    experts, elsewhere of its most loaded ones.
    """
    copies_E = has_HE.sum(axis=0)
    rate_E, more_E = load_E / copies_E, load_E / (copies_E + 1)
    less_E = load_E / np.maximum(copies_E - 1, 1)
    full, mean = int(rows_H.argmax()), rows_H.mean()
    likely_H = np.zeros(len(rows_H), np.bool_)
    likely_H[np.argsort(rows_H, kind="stable")[:n_likely]] = True
    likely_H[full] = True
    hot_E = np.zeros(len(load_E), np.bool_)
    hot_E[np.argsort(np.where(has_HE[full], -rate_E, 0.0), kind="stable")[:n_likely]] = True
    light_E = np.zeros(len(load_E), np.bool_)
    light_E[np.argsort(np.where(has_HE[full], np.inf, more_E), kind="stable")[:n_likely]] = True

    spare_H, spare_E = np.nonzero(has_HE & (copies_E > 1) & likely_H[:, None])
    wanted_CE = np.where((spare_H == full)[:, None], light_E, hot_E & has_HE[full])
    at, new_C = np.nonzero(wanted_CE & ~has_HE[spare_H] & _may_take(has_HE, nodes, within_nodes)[spare_H])
    if not len(at):
        return -np.inf, ()
    host_C, old_C = spare_H[at], spare_E[at]
    rows_CH = rows_H + (more_E - rate_E)[new_C][:, None] * has_HE[:, new_C].T
    rows_CH += (less_E - rate_E)[old_C][:, None] * has_HE[:, old_C].T
    rows_CH[np.arange(len(at)), host_C] += more_E[new_C] - less_E[old_C]
    gain_C = _excess(rows_H - mean).sum() - _excess(rows_CH - mean).sum(axis=1)
    best = int(gain_C.argmax())
    return float(gain_C[best]), ((int(host_C[best]), int(old_C[best]), int(new_C[best])),)


def _may_take(has_HE: Bools, nodes: Sequence[int], within_nodes: bool) -> Bools:
    """Whether a host may get an expert from elsewhere, as far as nodes go; `[H, E]`."""
    nodes_H: Ints = np.asarray(nodes)
    has_NE = np.stack([has_HE[nodes_H == node].any(axis=0) for node in range(max(nodes) + 1)])
    on_node_HE: Bools = has_NE[nodes_H]
    return on_node_HE if within_nodes else ~on_node_HE | has_NE.all(axis=0)


def _excess(rows: Floats) -> Floats:
    squares: Floats = np.maximum(rows, 0.0) ** 2
    return squares


def even_total(
    has_LHE: Bools,
    load_LE: Floats,
    limits_L: Floats,
    tolerance: float,
    nodes: Sequence[int],
    within_nodes: bool,
) -> Iterator[tuple[int, Exchange]]:
    """Layers and exchanges in them that even out the hosts' loads over all, while each stays in its limit.

    Args:
        has_LHE: which host holds which expert; is changed with every exchange.
        load_LE: the experts' loads.
        limits_L: which no host's load in a layer is to exceed.
        tolerance: ends when no host has more than 1 + tolerance times the mean.
        nodes: as in `even_layer`.
        within_nodes: as in `even_layer`.
    """
    rate_LE = load_LE / np.maximum(has_LHE.sum(axis=1), 1)
    while True:
        rows_LH = np.stack([host_rows(has, load) for has, load in zip(has_LHE, load_LE, strict=True)])
        total_H = rows_LH.sum(axis=0)
        full, mean = int(total_H.argmax()), float(total_H.mean())
        if total_H[full] <= mean * (1 + tolerance + ROUNDING):
            return
        room_LH = limits_L[:, None] - rows_LH
        for host in np.argsort(total_H, kind="stable").tolist():
            if total_H[host] >= mean:
                return
            found = _best_swap_over_layers(
                has_LHE, rate_LE, total_H, room_LH, full, host, nodes, within_nodes
            )
            if found is not None:
                break
        else:
            return
        layer, exchange = found
        for at, dropped, loaded in exchange:
            has_LHE[layer, at, dropped], has_LHE[layer, at, loaded] = False, True
        yield found


def _best_swap_over_layers(
    has_LHE: Bools,
    rate_LE: Floats,
    total_H: Floats,
    room_LH: Floats,
    full: int,
    host: int,
    nodes: Sequence[int],
    within_nodes: bool,
) -> tuple[int, Exchange] | None:
    mean = float(total_H.mean())
    best_gain, best = (WORTHWHILE * mean) ** 2, None
    now = _excess(total_H[[full, host]] - mean).sum()
    for layer, (has_HE, rate_E) in enumerate(zip(has_LHE, rate_LE, strict=True)):
        mine = np.flatnonzero(has_HE[full] & ~has_HE[host])
        theirs = np.flatnonzero(has_HE[host] & ~has_HE[full])
        falls = rate_E[mine][:, None] - rate_E[theirs][None]
        allowed = (falls >= WORTHWHILE * mean) & (falls <= room_LH[layer, host])
        if nodes[full] != nodes[host]:
            may_take_HE = _may_take(has_HE, nodes, within_nodes)
            allowed &= may_take_HE[host, mine][:, None] & may_take_HE[full, theirs][None]
        if not allowed.any():
            continue
        gain = now - _excess(total_H[full] - falls - mean) - _excess(total_H[host] + falls - mean)
        gain = np.where(allowed, gain, -np.inf)
        i, j = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[i, j] > best_gain:
            given, taken = int(mine[i]), int(theirs[j])
            best_gain = float(gain[i, j])
            best = layer, ((full, given, taken), (host, taken, given))
    return best
