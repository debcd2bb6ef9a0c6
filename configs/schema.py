"""The one deployment file: every setting of a deployment, typed, frozen and validated once.

Units stand in the names (`_s`, `_ms`, `_tokens`, `_bytes`). `load.py` reads the YAML; this module
only says what may stand in it. It imports neither torch nor ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from expertmesh.configs.edge import AccessConfig, GrpcConfig, HttpConfig
from expertmesh.configs.observability import LoggingConfig, MetricsConfig, TracingConfig
from expertmesh.configs.section import Section
from expertmesh.configs.security import SecurityConfig
from expertmesh.configs.speculative import SpeculativeConfig

Dtype = Literal["auto", "fp32", "bf16"]
DeviceKind = Literal["cpu", "cuda"]

CONFLICT = "conflict"
"""The type of a validation error between two settings; its context names the `key`."""


RAY_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
"""Ray's own resources, which have settings of their own."""


def _check_custom_resources(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in RAY_RESOURCES:
            raise ValueError(f"{name} is one of Ray's own resources; custom ones have other names")
        if amount <= 0:
            raise ValueError(f"{name} must be above 0")
    return resources


CustomResources = Annotated[dict[str, float], AfterValidator(_check_custom_resources)]
"""Amounts by name, of resources that nodes declare when Ray starts on them."""


class ModelConfig(Section):
    """Which checkpoint is served, under which name, in which precision."""

    path: Path
    """A Hugging Face checkpoint directory; relative paths start at the YAML's folder."""
    served_name: str | None = None
    """The name clients see; the directory's name when absent."""
    dtype: Dtype = "auto"
    """`auto` takes the checkpoint's own."""
    max_context_tokens: int | None = Field(default=None, ge=1)
    """Prompt and answer together; the checkpoint's `max_position_embeddings` when absent."""
    chat_format: Literal["auto", "template", "deepseek_v32", "deepseek_v4"] = "auto"
    """How conversations become prompts. `auto`: the checkpoint's chat template if it has one, else what its
    `model_type` is known for."""
    reasoning_parser: Literal["auto", "none", "think", "deepseek_r1"] = "auto"
    """What becomes `reasoning_content`. `think`: what stands between `<think>` and `</think>`, when the
    prompt or the reply opens it; `deepseek_r1`: also when nobody has opened it. `auto`: `think` where the
    template or the vocabulary knows the mark."""
    tool_call_parser: Literal[
        "auto",
        "none",
        "hermes",
        "deepseek_v3",
        "deepseek_v31",
        "deepseek_v32",
        "deepseek_v4",
        "qwen3_coder",
        "glm45",
        "harmony",
    ] = "auto"
    """How the model writes tool calls. `auto`: by the marks in the template or the vocabulary."""


class GatewayConfig(Section):
    """The Serve ingress: HTTP, gRPC, tokenizer and the open streams."""

    replicas: int = Field(default=1, ge=1)
    """Processes that take requests."""
    cpus: float = Field(default=0.1, ge=0)
    """Logical CPUs that Ray reserves for one."""
    resources: CustomResources = Field(default={})
    """Custom Ray resources that one takes, by name: it is placed only on nodes that offer them."""
    stream_chunks_per_s: float = Field(default=300.0, gt=0)
    """Messages a second that the open streams of one gateway share; above that, tokens of several steps
    travel together. First and last tokens never wait. Serve spends about 0.8 ms of a core on a message."""


class RouterConfig(Section):
    """Attention, gate, head, KV cache, scheduler and sampler; one device a replica."""

    replicas: int = Field(default=1, ge=1)
    """Each serves requests of its own; all share the expert hosts."""
    cpus: float = Field(default=0.5, ge=0)
    """Logical CPUs that Ray reserves for one."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one; a fraction lets several share one."""
    resources: CustomResources = Field(default={})
    """Custom Ray resources that one takes, by name: it is placed only on nodes that offer them."""
    threads: int = Field(default=0, ge=0)
    """Compute threads a replica; 0 shares the machine's cores evenly between routers and hosts."""


class ExpertsConfig(Section):
    """The expert hosts; `replicas: 0` is the fused mode (experts inside the router)."""

    replicas: int = Field(default=2, ge=0)
    """Hosts that the routed experts are spread over."""
    cpus: float = Field(default=0.5, ge=0)
    """Logical CPUs that Ray reserves for one."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one; a fraction lets several share one."""
    resources: CustomResources = Field(default={})
    """Custom Ray resources that one takes, by name: it is placed only on nodes that offer them."""
    threads: int = Field(default=0, ge=0)
    """Compute threads a host; 0 shares the machine's cores evenly between routers and hosts."""
    weights: Literal["as_stored", "bf16", "int8"] = "as_stored"
    """How routed experts are held in memory. `as_stored`: quantised ones (FP8, FP4) as in the checkpoint,
    made into what they are computed in where they are used. `bf16`: all in `model.dtype`. `int8`: all with
    eight bits and a scale for each output, made as they are read, for hosts short of memory."""
    slots_per_host: int | None = Field(default=None, ge=1)
    """Slots of each MoE layer that a host has room for; as many as its free memory holds when absent."""
    staging_slots: int | None = Field(default=None, ge=1)
    """Further slots of each MoE layer in which a host prepares a change; a larger change goes in several
    steps. When absent a change is prepared in one step."""
    redundant_slots: int = Field(default=0, ge=0)
    """Slots of each MoE layer, over all hosts, beyond one for each expert: copies of the most loaded."""


class BalanceConfig(Section):
    """When experts are moved and copied so that their hosts have even load."""

    window_s: float = Field(default=60.0, gt=0)
    """Load is what was routed within this time."""
    interval_s: float | None = Field(default=None, gt=0)
    """Rebalance this often; when absent not by the clock."""
    max_imbalance: float | None = Field(default=None, gt=1)
    """Rebalance when the most loaded host has this many times the mean load; when absent only by hand or by
    the clock."""
    min_rows: int = Field(default=4096, ge=1)
    """Rows of one MoE layer that the window must hold before its load is acted upon."""


class ChangeConfig(Section):
    """How planned changes of generation are gathered and spaced."""

    gather_s: float = Field(default=0.3, ge=0)
    """Members that join or leave within this time do so in one change."""
    retry_s: float = Field(default=5.0, gt=0)
    """Between a change that was rolled back and the next try."""


class ReplicaBounds(Section):
    """Between how many replicas the autoscaler may choose."""

    min_replicas: int = Field(default=1, ge=1)
    """Never fewer."""
    max_replicas: int = Field(default=1, ge=1)
    """Never more."""


class AutoscalingConfig(Section):
    """The autoscaler in the coordinator. A deployment with equal bounds is left alone."""

    enabled: bool = False
    """Off: only people scale."""
    policy: str = Field(default="expertmesh.cluster.autoscaling:load_policy", pattern=r"^[\w.]+:\w+$")
    """`module:function`, called with a context for each deployment as Serve's application policies are."""
    interval_s: float = Field(default=1.0, gt=0)
    """How often the policy is asked."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """More replicas must have been wanted for this long."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """Fewer replicas must have been wanted for this long."""
    hysteresis: float = Field(default=0.1, ge=0, lt=1)
    """Load may be off its target by this share before anything changes."""
    manual_hold_s: float = Field(default=300.0, ge=0)
    """After a person has scaled a deployment the autoscaler leaves it alone for this long."""
    gateway: ReplicaBounds = ReplicaBounds()
    router: ReplicaBounds = ReplicaBounds()
    experts: ReplicaBounds = ReplicaBounds()
    target_gateway_requests: float = Field(default=256.0, gt=0)
    """Open requests a gateway."""
    target_router_requests: float = Field(default=32.0, gt=0)
    """Queued and running requests a router."""
    target_router_queued_tokens: float = Field(default=4096.0, gt=0)
    """Prompt tokens that wait at a router."""
    target_experts_busy: float = Field(default=0.7, gt=0, le=1)
    """Share of its time that an expert host computes."""

    @property
    def bounds(self) -> dict[str, ReplicaBounds]:
        """The bounds by deployment: `gateway`, `router`, `experts`."""
        return {"gateway": self.gateway, "router": self.router, "experts": self.experts}


class EngineConfig(Section):
    """What a router computes with."""

    deterministic: bool = False
    """A token's result depends only on the tokens before it (docs/architecture.md)."""
    tile_rows: int = Field(default=16, ge=2, le=256)
    """The fixed M of every product in deterministic mode."""
    block_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens a block of the paged cache holds."""
    kv_cache_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the paged cache of one router holds; from `kv_cache_bytes` when absent."""
    kv_cache_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Most memory for one router's paged cache when `kv_cache_tokens` is absent."""


class ExchangeConfig(Section):
    """How rows travel between routers and expert hosts."""

    transport: Literal["auto", "local", "gloo", "nccl"] = "auto"
    """`local` (Unix sockets, one node, CPU), `gloo` (CUDA tensors staged through host memory) or `nccl`
    (every member needs a GPU of its own). `auto` picks the fastest that fits a generation's members."""


class SchedulerConfig(Section):
    """How a router fills a step."""

    max_running: int = Field(default=64, ge=1)
    """Sequences in one step at most."""
    max_step_tokens: int = Field(default=2048, ge=1)
    """Tokens in one step at most (decode and prefill chunks together)."""
    step_budget_ms: float = Field(default=200.0, gt=0)
    """Bounds every router's prefill chunk while any router decodes."""
    min_chunk_tokens: int = Field(default=16, ge=1)
    """Smallest prefill chunk that the step budget may force."""


class LimitsConfig(Section):
    """Bounds at the edge; each refusal names the field."""

    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """The model's context less one when absent."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most `max_tokens` of a request; what the context leaves when absent."""
    default_output_tokens: int = Field(default=256, ge=1)
    """`max_tokens` of a request that names none (chat: what the context leaves, as OpenAI)."""
    max_n: int = Field(default=16, ge=1)
    """Completions of one request."""
    max_logprobs: int = Field(default=20, ge=0)
    """Alternatives a token, for `logprobs` and `prompt_logprobs`."""
    max_stop_strings: int = Field(default=16, ge=0)
    """Stop strings of one request."""
    max_stop_length: int = Field(default=256, ge=1)
    """Characters of one stop string."""
    max_stop_token_ids: int = Field(default=64, ge=0)
    """Stop token ids of one request."""
    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    """Of an HTTP request or a gRPC message."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Requests (each of `n` counts) admitted and not finished, a gateway; above: refused."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """The deadline of a request whose client sets none."""


class FailureConfig(Section):
    """Deadlines of every wait between members."""

    deadline_s: float = Field(default=10.0, gt=0)
    """No heartbeat for this long: the member is taken for frozen."""
    heartbeat_s: float = Field(default=1.0, gt=0)
    """How often a member tells the coordinator that it is alive."""
    announce_s: float = Field(default=2.0, ge=0)
    """How long a restarted coordinator waits for the members that still run."""
    report_s: float = Field(default=5.0, gt=0)
    """A member asked to leave a generation answers within this, or is out."""
    prepare_s: float = Field(default=600.0, gt=0)
    """Loading weights and building the process group for a generation."""
    collective_s: float = Field(default=60.0, gt=0)
    """Backstop of one collective."""
    lease_s: float = Field(default=15.0, gt=0)
    """Routers free the requests of a gateway that has been silent for this long."""


class ShutdownConfig(Section):
    """What SIGTERM grants to running requests."""

    drain_s: float = Field(default=30.0, ge=0)
    """Running requests may take this long to end; then they are cut off."""


class LiveSettings(Section):
    """What changes while replicas run: the `user_config` of the gateways in a Serve deploy config."""

    limits: LimitsConfig = LimitsConfig()
    autoscaling: AutoscalingConfig = AutoscalingConfig()


class DeploymentConfig(Section):
    """One deployment: one model, one Serve application."""

    name: str = Field(default="expertmesh", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The Serve application's name."""
    device: DeviceKind = "cpu"
    """What routers and expert hosts compute on. With `cuda` and no `gpus` given, they share the cluster's
    GPUs evenly."""
    counts_from_serve: bool = False
    """How many replicas there are is what Serve has been told, not what stands in this file.
    `expertmesh build` sets it, so that another number in a deploy config restarts nothing."""
    model: ModelConfig
    gateway: GatewayConfig = GatewayConfig()
    router: RouterConfig = RouterConfig()
    experts: ExpertsConfig = ExpertsConfig()
    balance: BalanceConfig = BalanceConfig()
    change: ChangeConfig = ChangeConfig()
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    engine: EngineConfig = EngineConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    speculative: SpeculativeConfig = SpeculativeConfig()
    limits: LimitsConfig = LimitsConfig()
    failure: FailureConfig = FailureConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig = GrpcConfig()
    access: AccessConfig = AccessConfig()
    security: SecurityConfig = SecurityConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> DeploymentConfig:
        transport, scheduler, failure = self.exchange.transport, self.scheduler, self.failure
        tls = self.security.internal_tls
        for wrong, key, problem in (
            (
                transport == "nccl" and self.device != "cuda",
                "exchange.transport",
                "nccl needs device: cuda",
            ),
            (
                transport == "local" and self.device != "cpu",
                "exchange.transport",
                "local needs device: cpu",
            ),
            (
                scheduler.min_chunk_tokens > scheduler.max_step_tokens,
                "scheduler.min_chunk_tokens",
                f"is above scheduler.max_step_tokens, {scheduler.max_step_tokens}",
            ),
            (
                failure.heartbeat_s >= failure.deadline_s,
                "failure.heartbeat_s",
                f"must be below failure.deadline_s, {failure.deadline_s}",
            ),
            (
                (self.http.tls_cert_file is None) != (self.http.tls_key_file is None),
                "http",
                "needs both tls_cert_file and tls_key_file, or neither",
            ),
            (
                len({path is None for path in (tls.cert_file, tls.key_file, tls.ca_file)}) > 1,
                "security.internal_tls",
                "needs cert_file, key_file and ca_file",
            ),
            *(
                (
                    bounds.min_replicas > bounds.max_replicas,
                    f"autoscaling.{name}.min_replicas",
                    f"is above autoscaling.{name}.max_replicas, {bounds.max_replicas}",
                )
                for name, bounds in self.autoscaling.bounds.items()
            ),
        ):
            if wrong:
                raise PydanticCustomError(CONFLICT, "{problem}", {"key": key, "problem": problem})
        return self

    @property
    def served_name(self) -> str:
        """The model's name as clients see it."""
        return self.model.served_name or self.model.path.name

    @property
    def fused(self) -> bool:
        """Whether the experts live inside the router (no expert hosts, no exchange)."""
        return self.experts.replicas == 0
