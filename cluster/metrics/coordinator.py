"""What the coordinator says of the deployment as a whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from expertmesh.cluster.autoscaling import Decision
from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.sink import MetricSink
from expertmesh.cluster.scaling import DEPLOYMENTS
from expertmesh.cluster.scaling_loop import BY_HAND, BY_LOAD
from expertmesh.cluster.state import DeadlineMiss, View
from expertmesh.cluster.types import Change, Generation, MemberInfo, Role
from expertmesh.configs.observability import MetricsConfig

KINDS = ("start", "scale", "rebalance", "reload", "recovery")
OUTCOMES = ("live", "rolled back")
CAUSES = ("lost", "frozen", "cut_off", "collective", "left", "other")
LOST, FROZEN, CUT_OFF, COLLECTIVE, LEFT, OTHER = CAUSES
EVERY_EXPERT_S = 5.0
"""How often the load of every expert is told: there may be many thousands of them."""
_CAUSES = (
    ("no heartbeat for", FROZEN),
    ("did not leave generation", FROZEN),
    ("did not switch to", FROZEN),
    ("did not answer a probe", FROZEN),
    ("not reached", CUT_OFF),
    ("its stream ended", LOST),
    ("came back on a new stream", LOST),
    ("leaves", LEFT),
)
"""What stands in a recovery's reason, and its cause."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The deployment at a moment, as the coordinator sees it."""

    view: View
    members: Sequence[MemberInfo]
    """Who is connected."""
    loads: LoadTable
    targets: Mapping[str, int]
    """Replicas that each deployment is to have."""


def cause_of(reason: str) -> str:
    """The cause of a recovery, from its reason; see `catalog.RECOVERIES`."""
    for words, cause in _CAUSES:
        if words in reason:
            return cause
    return OTHER


class CoordinatorMetrics:
    """Takes events as they come and looks at the rest when `tell` is called, both in one event loop.

    Args:
        sink: where figures go.
        settings: the deployment's.
        n_experts: routed experts of each MoE layer.
    """

    def __init__(self, sink: MetricSink, settings: MetricsConfig, n_experts: int) -> None:
        self._sink = sink
        self._settings = settings
        self._n_experts = n_experts
        self._changes: Counter[tuple[str, str]] = Counter(dict.fromkeys(product(KINDS, OUTCOMES), 0))
        self._recoveries: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))
        self._misses: Counter[tuple[str, str, str]] = Counter()
        self._accusations: Counter[str] = Counter({Role.ROUTER.value: 0, Role.EXPERTS.value: 0})
        decisions = product(DEPLOYMENTS, ("up", "down"), (BY_HAND, BY_LOAD))
        self._decisions: Counter[tuple[str, str, str]] = Counter(dict.fromkeys(decisions, 0))
        self._change: Change | None = None
        self._not_live_s = 0.0
        self._was_live = False
        self._told_s: float | None = None
        self._told_experts_s = -math.inf

    # ------------------------------------------------------------ events

    def saw(self, change: Change | None, misses: Sequence[DeadlineMiss]) -> None:
        """Something has happened: the last change that has ended may be another, and members may have let
        deadlines pass."""
        for miss in misses:
            self._misses[miss.deadline, miss.member.role.value, miss.member.replica_id] += 1
        if change is None or change is self._change:
            return
        self._change = change
        self._changes[change.kind, change.outcome] += 1
        self._sink.observe(catalog.CHANGE_SECONDS, change.seconds, kind=change.kind, outcome=change.outcome)
        if change.kind == "recovery":
            self._recoveries[cause_of(change.reason)] += 1

    def accused(self, role: Role) -> None:
        """A member's collective has failed."""
        self._accusations[role.value] += 1

    def scaled(self, decision: Decision, by: str) -> None:
        """A number of replicas was set."""
        direction = "up" if decision.after > decision.before else "down"
        self._decisions[decision.deployment, direction, by] += 1

    # ------------------------------------------------------------ once a second

    def tell(self, observed: Observation, now_s: float) -> None:
        """Passes everything on."""
        view, sink = observed.view, self._sink
        self._tell_liveness(view, now_s)
        generation = view.generation
        n_gateways = sum(member.role is Role.GATEWAY for member in observed.members)
        sink.set(catalog.GENERATION, generation.number if generation else 0)
        live = generation if generation and view.state.serves else None
        sink.set(catalog.MEMBERS, live.n_routers if live else 0, role="router")
        sink.set(catalog.MEMBERS, live.n_experts if live else 0, role="experts")
        sink.set(catalog.MEMBERS, n_gateways, role="gateway")
        for deployment, n in observed.targets.items():
            sink.set(catalog.TARGETS, n, deployment=deployment)
        self._tell_room(observed.members)
        for (kind, outcome), n in self._changes.items():
            sink.total(catalog.CHANGES, n, kind=kind, outcome=outcome)
        for cause, n in self._recoveries.items():
            sink.total(catalog.RECOVERIES, n, cause=cause)
        for (deadline, role, member), n in self._misses.items():
            sink.total(catalog.DEADLINE_MISSES, n, deadline=deadline, role=role, member=member)
        for role, n in self._accusations.items():
            sink.total(catalog.ACCUSATIONS, n, role=role)
        for (deployment, direction, by), n in self._decisions.items():
            sink.total(catalog.SCALE_DECISIONS, n, deployment=deployment, direction=direction, by=by)
        if generation is not None:
            self._tell_balance(observed.loads, generation)
            self._tell_experts(observed.loads, now_s)

    def _tell_liveness(self, view: View, now_s: float) -> None:
        self._sink.set(catalog.LIVE, int(view.state.serves))
        if view.state.serves:
            self._was_live = True
        elif self._was_live and self._told_s is not None:
            self._not_live_s += now_s - self._told_s
        self._told_s = now_s
        self._sink.total(catalog.NOT_LIVE_SECONDS, self._not_live_s)

    def _tell_room(self, members: Sequence[MemberInfo]) -> None:
        self._sink.set(catalog.EXPERTS, self._n_experts)
        slots = [member.slots or self._n_experts for member in members if member.role is Role.EXPERTS]
        self._sink.set(catalog.EXPERT_SLOTS, sum(slots))
        self._sink.set(catalog.LARGEST_HOST_SLOTS, max(slots, default=0))

    def _tell_balance(self, loads: LoadTable, generation: Generation) -> None:
        self._sink.set(catalog.IMBALANCE, loads.imbalance(generation))
        shares = balancedness(loads.window_host_rows(generation), generation.n_experts)
        if shares is not None:
            self._sink.set(catalog.BALANCEDNESS, shares)

    def _tell_experts(self, loads: LoadTable, now_s: float) -> None:
        rows = loads.window_expert_rows()
        if rows is None:
            return
        hottest = hottest_experts(rows, self._settings.expert_load_top)
        for load, layer, expert in hottest:
            self._sink.set(catalog.HOT_EXPERT_LOAD, load, layer=str(layer), expert=str(expert))
        if self._settings.every_expert and now_s - self._told_experts_s >= EVERY_EXPERT_S:
            self._told_experts_s = now_s
            for layer, of_layer in enumerate(rows):
                for expert, n in enumerate(of_layer):
                    self._sink.set(catalog.LOGICAL_EXPERT_ROWS, n, layer=str(layer), expert=str(expert))


def balancedness(host_rows: Sequence[int], n_hosts: int) -> float | None:
    """Mean over maximum of the hosts' rows, averaged over the layers that have any; None when none has.

    Args:
        host_rows: flattened [layer, host].
        n_hosts: expert hosts.
    """
    if not n_hosts:
        return None
    layers = [host_rows[first : first + n_hosts] for first in range(0, len(host_rows), n_hosts)]
    shares = [sum(layer) / n_hosts / max(layer) for layer in layers if any(layer)]
    return sum(shares) / len(shares) if shares else None


def hottest_experts(rows: Sequence[Sequence[int]], n: int) -> list[tuple[float, int, int]]:
    """The n most loaded experts of all layers: (load over the layer's mean, layer, expert), hottest first.

    Args:
        rows: [layer][expert].
        n: how many at most.
    """
    found = []
    for layer, of_layer in enumerate(rows):
        total = sum(of_layer)
        if total:
            # Of each layer no more than n can be among the first n of all.
            first = sorted(range(len(of_layer)), key=lambda e: -of_layer[e])[:n]
            found += [(of_layer[e] * len(of_layer) / total, layer, e) for e in first]
    return sorted(found, key=lambda item: (-item[0], item[1], item[2]))[:n]
