"""Every metric that expertmesh exports: name, kind, labels and meaning. docs/metrics.md is made from it.

Names follow Prometheus: a unit at the end, `_total` behind counters. Ray puts `ray_` before all of them.
Every metric has COMMON_LABELS besides its own; no label ever holds what a client sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "expertmesh_"
RAY_PREFIX = "ray_"
"""What Ray puts before every name."""
COMMON_LABELS = ("application", "model", "process", "replica")
"""The deployment's name, the served model's, `gateway`, `router`, `experts` or `coordinator`, and Serve's
id of the replica (empty for the coordinator)."""

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["gateway", "router", "experts", "coordinator"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    """As it is made; `exported` is the name that Prometheus sees."""
    kind: Kind
    processes: tuple[Process, ...]
    """Who tells of it."""
    help: str
    labels: tuple[str, ...] = ()
    """Besides COMMON_LABELS."""
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper bounds of its buckets, the last, infinite one apart."""
    when: str = ""
    """What it takes for it to be there at all; empty when it always is."""

    @property
    def exported(self) -> str:
        """The name that Prometheus sees; of a histogram `_bucket`, `_count` and `_sum` stand behind it."""
        return RAY_PREFIX + self.name

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind != "histogram":
            return (self.exported,)
        return tuple(f"{self.exported}_{part}" for part in ("bucket", "count", "sum"))


def _bounds(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def _counter(
    name: str, *processes: Process, help: str, labels: tuple[str, ...] = (), when: str = ""
) -> Metric:
    return Metric(PREFIX + name, "counter", processes, help, labels, when=when)


def _gauge(
    name: str, *processes: Process, help: str, labels: tuple[str, ...] = (), when: str = ""
) -> Metric:
    return Metric(PREFIX + name, "gauge", processes, help, labels, when=when)


def _histogram(
    name: str,
    *processes: Process,
    help: str,
    bounds: tuple[float, ...],
    labels: tuple[str, ...] = (),
    when: str = "",
) -> Metric:
    return Metric(PREFIX + name, "histogram", processes, help, labels, bounds, when)


# ---------------------------------------------------------------- gateways

REQUESTS = _counter(
    "requests_total",
    "gateway",
    help="Requests for tokens that have ended: `completed`, `cancelled` by the client, `refused` before "
    "they began, or `failed` after that.",
    labels=("face", "outcome"),
)
REFUSALS = _counter(
    "refusals_total",
    "gateway",
    help="Requests refused before they began, and calls without a key that suffices, by the kind of error.",
    labels=("reason",),
)
FAILURES = _counter(
    "failures_total",
    "gateway",
    help="Admitted requests that ended with an error, by its kind.",
    labels=("reason",),
)
OPEN_REQUESTS = _gauge(
    "open_requests", "gateway", help="Completions admitted and not ended (each of `n` counts)."
)
WAITING_REQUESTS = _gauge(
    "waiting_requests",
    "gateway",
    help="Completions that wait for a router: none is reached, or no generation lives.",
)
PROMPT_TOKENS = _counter(
    "prompt_tokens_total",
    "gateway",
    help="Prompt tokens of admitted requests (each prompt once, whatever `n`).",
)
OUTPUT_TOKENS = _counter("output_tokens_total", "gateway", help="Tokens that routers gave for answers.")
RESUMED = _counter(
    "resumed_completions_total",
    "gateway",
    help="Times that a completion went on at another router after its own was lost or left.",
)
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds",
    "gateway",
    help="From a request's arrival at the gateway to its first token there.",
    bounds=_bounds("0.01 0.02 0.03 0.05 0.075 0.1 0.15 0.2 0.3 0.5 0.75 1 1.5 2 3 5 7.5 10 20 30 60 120"),
)
TOKEN_GAP = _histogram(
    "inter_token_gap_seconds",
    "gateway",
    help="Between two arrivals of tokens of one answer at the gateway.",
    bounds=_bounds(
        "0.001 0.002 0.005 0.01 0.015 0.02 0.03 0.04 0.05 0.075 0.1 0.15 0.2 0.3 0.5 0.75 1 2 5 10 30"
    ),
)
REQUEST_SECONDS = _histogram(
    "request_seconds",
    "gateway",
    help="From a request's arrival to its end, of those that completed.",
    bounds=_bounds("0.05 0.1 0.2 0.5 1 2 3 5 7.5 10 15 20 30 45 60 90 120 300 600"),
)

# ---------------------------------------------------------------- routers

QUEUE_WAIT = _histogram(
    "queue_wait_seconds",
    "router",
    help="From a request's arrival at the router to the first step that computes some of it.",
    bounds=_bounds("0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 30 60 120 300"),
)
QUEUED_REQUESTS = _gauge("queued_requests", "router", help="Requests that wait for their first step.")
RUNNING_REQUESTS = _gauge("running_requests", "router", help="Requests that are being computed.")
QUEUED_TOKENS = _gauge("queued_tokens", "router", help="Prompt tokens that are still to be computed.")
BATCH = _histogram(
    "batch_sequences",
    "router",
    help="Sequences that one step computed.",
    bounds=_bounds("1 2 4 8 12 16 24 32 48 64 96 128 192 256 384 512"),
)
COMPUTED_TOKENS = _counter(
    "computed_tokens_total",
    "router",
    help="Tokens that steps computed, by `phase`: `prefill` or `decode`.",
    labels=("phase",),
)
STEP_SECONDS = _histogram(
    "step_seconds",
    "router",
    help="A step from its schedule to its commit, waits for other ranks included.",
    bounds=_bounds(
        "0.001 0.002 0.003 0.005 0.0075 0.01 0.015 0.02 0.03 0.05 0.075 0.1 0.2 0.3 0.5 1 2 5 10"
    ),
)
STEPS_REPEATED = _counter(
    "steps_repeated_total",
    "router",
    help="Steps that began again because their generation was lost.",
)
DRAFT_TOKENS = _counter("draft_tokens_total", "router", help="Drafted tokens that steps have verified.")
ACCEPTED_DRAFT_TOKENS = _counter(
    "accepted_draft_tokens_total", "router", help="Drafted tokens that became part of answers."
)
PREEMPTIONS = _counter(
    "preemptions_total",
    "router",
    help="Sequences that gave up their cache blocks to others, to be computed once more.",
)
CACHE_BLOCKS = _gauge("kv_blocks", "router", help="Blocks of the paged KV cache.")
CACHE_BLOCKS_USED = _gauge(
    "kv_blocks_used", "router", help="Blocks of the paged KV cache that sequences hold."
)

# ---------------------------------------------------------------- routers and expert hosts

DECODE_STEPS = _counter(
    "decode_steps_total", "router", "experts", help="Decode steps that `decode_part_seconds_total` adds up."
)
DECODE_PART_SECONDS = _counter(
    "decode_part_seconds_total",
    "router",
    "experts",
    help="Seconds of decode steps by part (docs/benchmarks.md names them).",
    labels=("part",),
)
BUSY_SECONDS = _counter(
    "busy_seconds_total", "router", "experts", help="Seconds spent on steps, waits for other ranks apart."
)
EXCHANGED_BYTES = _counter(
    "exchanged_bytes_total",
    "router",
    "experts",
    help="Bytes of rows sent to and received from other members.",
    labels=("direction",),
    when="there are expert hosts",
)
LOADED_BYTES = _gauge("loaded_bytes", "router", "experts", help="Bytes of weights read since the start.")

# ---------------------------------------------------------------- expert hosts

HOST_ROWS = _counter(
    "host_rows_total",
    "experts",
    help="Token-expert pairs that this host has computed, over all layers.",
)

# ---------------------------------------------------------------- the coordinator

LIVE = _gauge("live", "coordinator", help="1 while a generation is live, else 0.")
GENERATION = _gauge(
    "generation", "coordinator", help="The number of the generation that is live, or was last."
)
MEMBERS = _gauge(
    "members", "coordinator", help="Members of the live generation by role, and gateways.", labels=("role",)
)
TARGETS = _gauge(
    "target_replicas",
    "coordinator",
    help="Replicas that a deployment is to have.",
    labels=("deployment",),
)
NOT_LIVE_SECONDS = _counter(
    "not_live_seconds_total",
    "coordinator",
    help="Seconds in which no generation was live, since the first one was.",
)
CHANGES = _counter(
    "changes_total",
    "coordinator",
    help="Changes of generation that have ended, by `kind` (`start`, `scale`, `rebalance`, `reload`, "
    "`recovery`) and `outcome` (`live`, `rolled back`). Their reasons stand in the log, in `status` and "
    "in `/v1/topology`.",
    labels=("kind", "outcome"),
)
CHANGE_SECONDS = _histogram(
    "change_seconds",
    "coordinator",
    help="From a change's trigger to its end.",
    bounds=_bounds("0.05 0.1 0.2 0.3 0.5 0.75 1 1.5 2 3 5 7.5 10 15 20 30 60 120 300 600"),
    labels=("kind", "outcome"),
)
RECOVERIES = _counter(
    "recoveries_total",
    "coordinator",
    help="Recoveries by `cause`: `lost` (a stream ended), `frozen` (a deadline passed), `cut_off` (members "
    "did not reach each other), `collective` (a collective failed), `left` or `other`.",
    labels=("cause",),
)
DEADLINE_MISSES = _counter(
    "deadline_misses_total",
    "coordinator",
    help="Deadlines that a member let pass: `heartbeat`, `leave`, `probe`, `prepare` or `switch`. `member` "
    "is Serve's id of its replica.",
    labels=("deadline", "role", "member"),
    when="a member was frozen or too slow",
)
ACCUSATIONS = _counter(
    "accusations_total",
    "coordinator",
    help="Collectives that failed, by the role of the member that said so.",
    labels=("role",),
)
IMBALANCE = _gauge(
    "imbalance",
    "coordinator",
    help="The most loaded host's rows over the mean within `balance.window_s`; 0 when nothing was routed.",
)
BALANCEDNESS = _gauge(
    "balancedness",
    "coordinator",
    help="Mean over maximum of the hosts' rows, averaged over the MoE layers, within `balance.window_s`: "
    "1 is even.",
    when="rows were routed to expert hosts",
)
EXPERT_SLOTS = _gauge(
    "expert_slots",
    "coordinator",
    help="Slots of each MoE layer that the expert hosts which are there have room for; a host without a "
    "bound counts for all experts.",
)
LARGEST_HOST_SLOTS = _gauge(
    "largest_host_slots",
    "coordinator",
    help="Slots of the expert host that has most.",
)
EXPERTS = _gauge(
    "experts", "coordinator", help="Routed experts of each MoE layer: the slots that are needed at least."
)
HOT_EXPERT_LOAD = _gauge(
    "hot_expert_load",
    "coordinator",
    help="Rows of a logical expert over the mean of its MoE layer, within `balance.window_s`: of the "
    "`metrics.expert_load_top` most loaded ones. The others are not exported.",
    labels=("layer", "expert"),
    when="rows were routed",
)
LOGICAL_EXPERT_ROWS = _gauge(
    "logical_expert_rows",
    "coordinator",
    help="Rows of a logical expert within `balance.window_s`: as many series as the model has experts.",
    labels=("layer", "expert"),
    when="`metrics.every_expert` is on",
)
SCALE_DECISIONS = _counter(
    "scale_decisions_total",
    "coordinator",
    help="Changes of a deployment's number of replicas, `up` or `down`, `by hand` or `by the autoscaler`.",
    labels=("deployment", "direction", "by"),
)

CATALOG: tuple[Metric, ...] = (
    REQUESTS,
    REFUSALS,
    FAILURES,
    OPEN_REQUESTS,
    WAITING_REQUESTS,
    PROMPT_TOKENS,
    OUTPUT_TOKENS,
    RESUMED,
    TIME_TO_FIRST_TOKEN,
    TOKEN_GAP,
    REQUEST_SECONDS,
    QUEUE_WAIT,
    QUEUED_REQUESTS,
    RUNNING_REQUESTS,
    QUEUED_TOKENS,
    BATCH,
    COMPUTED_TOKENS,
    STEP_SECONDS,
    STEPS_REPEATED,
    DRAFT_TOKENS,
    ACCEPTED_DRAFT_TOKENS,
    PREEMPTIONS,
    CACHE_BLOCKS,
    CACHE_BLOCKS_USED,
    DECODE_STEPS,
    DECODE_PART_SECONDS,
    BUSY_SECONDS,
    EXCHANGED_BYTES,
    LOADED_BYTES,
    HOST_ROWS,
    LIVE,
    GENERATION,
    MEMBERS,
    TARGETS,
    NOT_LIVE_SECONDS,
    CHANGES,
    CHANGE_SECONDS,
    RECOVERIES,
    DEADLINE_MISSES,
    ACCUSATIONS,
    IMBALANCE,
    BALANCEDNESS,
    EXPERT_SLOTS,
    LARGEST_HOST_SLOTS,
    EXPERTS,
    HOT_EXPERT_LOAD,
    LOGICAL_EXPERT_ROWS,
    SCALE_DECISIONS,
)
