from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_GATEWAY: _ClassVar[Role]
    ROLE_ROUTER: _ClassVar[Role]
    ROLE_EXPERTS: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_GATEWAY: Role
ROLE_ROUTER: Role
ROLE_EXPERTS: Role

class GatewayToRouter(_message.Message):
    __slots__ = ("hello", "submit", "cancel", "keep_alive")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    hello: GatewayHello
    submit: Submit
    cancel: Cancel
    keep_alive: KeepAlive
    def __init__(self, hello: _Optional[_Union[GatewayHello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., keep_alive: _Optional[_Union[KeepAlive, _Mapping]] = ...) -> None: ...

class GatewayHello(_message.Message):
    __slots__ = ("gateway_incarnation",)
    GATEWAY_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    gateway_incarnation: str
    def __init__(self, gateway_incarnation: _Optional[str] = ...) -> None: ...

class KeepAlive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "attempt", "prompt_token_ids", "output_token_ids", "sampling", "weights", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    weights: int
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., weights: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop_token_ids", "logprobs", "prompt_logprobs", "min_tokens")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    prompt_logprobs: int
    min_tokens: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class RouterToGateway(_message.Message):
    __slots__ = ("news", "load", "leaving")
    NEWS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    news: _containers.RepeatedCompositeFieldContainer[SequenceNews]
    load: RouterLoad
    leaving: bool
    def __init__(self, news: _Optional[_Iterable[_Union[SequenceNews, _Mapping]]] = ..., load: _Optional[_Union[RouterLoad, _Mapping]] = ..., leaving: _Optional[bool] = ...) -> None: ...

class RouterLoad(_message.Message):
    __slots__ = ("queued_requests", "running_requests", "queued_tokens", "running_tokens")
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queued_requests: int
    running_requests: int
    queued_tokens: int
    running_tokens: int
    def __init__(self, queued_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., running_tokens: _Optional[int] = ...) -> None: ...

class SequenceNews(_message.Message):
    __slots__ = ("request_id", "attempt", "index", "token_ids", "logprobs", "prompt_index", "prompt_logprobs", "finish_reason", "stop_token_id", "error", "cause", "draft_tokens", "accepted_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[LogprobRow]
    prompt_index: int
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[LogprobRow]
    finish_reason: str
    stop_token_id: int
    error: str
    cause: str
    draft_tokens: int
    accepted_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[LogprobRow, _Mapping]]] = ..., prompt_index: _Optional[int] = ..., prompt_logprobs: _Optional[_Iterable[_Union[LogprobRow, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., stop_token_id: _Optional[int] = ..., error: _Optional[str] = ..., cause: _Optional[str] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class LogprobRow(_message.Message):
    __slots__ = ("token_ids", "logprobs", "rank")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    rank: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., rank: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("role", "incarnation", "node", "pid", "device", "stream_address", "store_address", "replica_id", "generation", "seen_generation", "next_generation", "slots", "probe_address", "running", "epoch")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STREAM_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEEN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROBE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    role: Role
    incarnation: str
    node: str
    pid: int
    device: str
    stream_address: str
    store_address: str
    replica_id: str
    generation: int
    seen_generation: int
    next_generation: int
    slots: int
    probe_address: str
    running: GenerationSpec
    epoch: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., incarnation: _Optional[str] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., stream_address: _Optional[str] = ..., store_address: _Optional[str] = ..., replica_id: _Optional[str] = ..., generation: _Optional[int] = ..., seen_generation: _Optional[int] = ..., next_generation: _Optional[int] = ..., slots: _Optional[int] = ..., probe_address: _Optional[str] = ..., running: _Optional[_Union[GenerationSpec, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class MemberMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "prepared", "prepare_failed", "abandoned", "accuse", "wake_request", "load", "leaving", "probe_report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FAILED_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    ACCUSE_FIELD_NUMBER: _ClassVar[int]
    WAKE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PROBE_REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    prepared: Prepared
    prepare_failed: PrepareFailed
    abandoned: Abandoned
    accuse: Accuse
    wake_request: WakeRequest
    load: LoadReport
    leaving: Leaving
    probe_report: ProbeReport
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., prepare_failed: _Optional[_Union[PrepareFailed, _Mapping]] = ..., abandoned: _Optional[_Union[Abandoned, _Mapping]] = ..., accuse: _Optional[_Union[Accuse, _Mapping]] = ..., wake_request: _Optional[_Union[WakeRequest, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., probe_report: _Optional[_Union[ProbeReport, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class PrepareFailed(_message.Message):
    __slots__ = ("generation", "reason", "unmet")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNMET_FIELD_NUMBER: _ClassVar[int]
    generation: int
    reason: str
    unmet: bool
    def __init__(self, generation: _Optional[int] = ..., reason: _Optional[str] = ..., unmet: _Optional[bool] = ...) -> None: ...

class Abandoned(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class Accuse(_message.Message):
    __slots__ = ("generation", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: int
    reason: str
    def __init__(self, generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class WakeRequest(_message.Message):
    __slots__ = ("generation", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    epoch: int
    def __init__(self, generation: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeReport(_message.Message):
    __slots__ = ("round", "reached")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    round: int
    reached: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round: _Optional[int] = ..., reached: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("tokens", "expert_rows", "outstanding_requests", "decode_profile", "cache_blocks", "cache_blocks_used", "loaded_bytes", "total_bytes", "host_rows_generation", "host_rows", "running_requests", "queued_requests", "queued_tokens", "busy_s", "oldest_weights", "newest_weights", "draft_tokens", "accepted_tokens")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DECODE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_ROWS_GENERATION_FIELD_NUMBER: _ClassVar[int]
    HOST_ROWS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    expert_rows: _containers.RepeatedScalarFieldContainer[int]
    outstanding_requests: int
    decode_profile: StepProfile
    cache_blocks: int
    cache_blocks_used: int
    loaded_bytes: int
    total_bytes: int
    host_rows_generation: int
    host_rows: _containers.RepeatedScalarFieldContainer[int]
    running_requests: int
    queued_requests: int
    queued_tokens: int
    busy_s: float
    oldest_weights: int
    newest_weights: int
    draft_tokens: int
    accepted_tokens: int
    def __init__(self, tokens: _Optional[int] = ..., expert_rows: _Optional[_Iterable[int]] = ..., outstanding_requests: _Optional[int] = ..., decode_profile: _Optional[_Union[StepProfile, _Mapping]] = ..., cache_blocks: _Optional[int] = ..., cache_blocks_used: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., host_rows_generation: _Optional[int] = ..., host_rows: _Optional[_Iterable[int]] = ..., running_requests: _Optional[int] = ..., queued_requests: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., busy_s: _Optional[float] = ..., oldest_weights: _Optional[int] = ..., newest_weights: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class StepProfile(_message.Message):
    __slots__ = ("steps", "part_ms")
    class PartMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PART_MS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    part_ms: _containers.ScalarMap[str, float]
    def __init__(self, steps: _Optional[int] = ..., part_ms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GenerationSpec(_message.Message):
    __slots__ = ("number", "members", "placement", "store_address", "weights")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    members: _containers.RepeatedCompositeFieldContainer[MemberSpec]
    placement: _containers.RepeatedCompositeFieldContainer[LayerSlots]
    store_address: str
    weights: _containers.RepeatedCompositeFieldContainer[Weights]
    def __init__(self, number: _Optional[int] = ..., members: _Optional[_Iterable[_Union[MemberSpec, _Mapping]]] = ..., placement: _Optional[_Iterable[_Union[LayerSlots, _Mapping]]] = ..., store_address: _Optional[str] = ..., weights: _Optional[_Iterable[_Union[Weights, _Mapping]]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("version", "path")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    version: int
    path: str
    def __init__(self, version: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class MemberSpec(_message.Message):
    __slots__ = ("incarnation", "role", "node", "pid", "device", "stream_address", "store_address", "replica_id", "slots", "probe_address")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STREAM_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROBE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    role: Role
    node: str
    pid: int
    device: str
    stream_address: str
    store_address: str
    replica_id: str
    slots: int
    probe_address: str
    def __init__(self, incarnation: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., stream_address: _Optional[str] = ..., store_address: _Optional[str] = ..., replica_id: _Optional[str] = ..., slots: _Optional[int] = ..., probe_address: _Optional[str] = ...) -> None: ...

class LayerSlots(_message.Message):
    __slots__ = ("layer", "hosts")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    hosts: _containers.RepeatedCompositeFieldContainer[Slots]
    def __init__(self, layer: _Optional[int] = ..., hosts: _Optional[_Iterable[_Union[Slots, _Mapping]]] = ...) -> None: ...

class Slots(_message.Message):
    __slots__ = ("experts",)
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, experts: _Optional[_Iterable[int]] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("prepare", "live", "abandon", "wake", "topology", "excluded", "drain", "switch", "probe")
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    ABANDON_FIELD_NUMBER: _ClassVar[int]
    WAKE_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    prepare: Prepare
    live: Live
    abandon: Abandon
    wake: Wake
    topology: TopologyUpdate
    excluded: Excluded
    drain: Drain
    switch: Switch
    probe: Probe
    def __init__(self, prepare: _Optional[_Union[Prepare, _Mapping]] = ..., live: _Optional[_Union[Live, _Mapping]] = ..., abandon: _Optional[_Union[Abandon, _Mapping]] = ..., wake: _Optional[_Union[Wake, _Mapping]] = ..., topology: _Optional[_Union[TopologyUpdate, _Mapping]] = ..., excluded: _Optional[_Union[Excluded, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., switch: _Optional[_Union[Switch, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationSpec
    def __init__(self, generation: _Optional[_Union[GenerationSpec, _Mapping]] = ...) -> None: ...

class Live(_message.Message):
    __slots__ = ("generation", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    epoch: int
    def __init__(self, generation: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("round", "addresses", "timeout_s")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    round: int
    addresses: _containers.ScalarMap[str, str]
    timeout_s: float
    def __init__(self, round: _Optional[int] = ..., addresses: _Optional[_Mapping[str, str]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class Switch(_message.Message):
    __slots__ = ("from_generation", "to_generation")
    FROM_GENERATION_FIELD_NUMBER: _ClassVar[int]
    TO_GENERATION_FIELD_NUMBER: _ClassVar[int]
    from_generation: int
    to_generation: int
    def __init__(self, from_generation: _Optional[int] = ..., to_generation: _Optional[int] = ...) -> None: ...

class Abandon(_message.Message):
    __slots__ = ("generation", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: int
    reason: str
    def __init__(self, generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Wake(_message.Message):
    __slots__ = ("generation", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    epoch: int
    def __init__(self, generation: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Excluded(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TopologyUpdate(_message.Message):
    __slots__ = ("generation", "state", "reason", "tokens", "expert_rows", "draining", "outstanding_requests", "decode_profiles", "cache_blocks", "cache_blocks_used", "loaded_bytes", "total_bytes", "last_change", "change", "window_expert_rows", "window_host_rows", "imbalance", "targets", "stale", "gateways", "changes", "outside", "running_requests", "queued_requests", "draft_tokens", "accepted_tokens")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DECODE_PROFILES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_EXPERT_ROWS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_HOST_ROWS_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationSpec
    state: str
    reason: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    expert_rows: _containers.RepeatedScalarFieldContainer[int]
    draining: bool
    outstanding_requests: int
    decode_profiles: _containers.RepeatedCompositeFieldContainer[StepProfile]
    cache_blocks: _containers.RepeatedScalarFieldContainer[int]
    cache_blocks_used: _containers.RepeatedScalarFieldContainer[int]
    loaded_bytes: int
    total_bytes: int
    last_change: Change
    change: Change
    window_expert_rows: _containers.RepeatedScalarFieldContainer[int]
    window_host_rows: _containers.RepeatedScalarFieldContainer[int]
    imbalance: float
    targets: ScaleTargets
    stale: bool
    gateways: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    outside: _containers.RepeatedCompositeFieldContainer[OutsideMember]
    running_requests: _containers.RepeatedScalarFieldContainer[int]
    queued_requests: _containers.RepeatedScalarFieldContainer[int]
    draft_tokens: _containers.RepeatedScalarFieldContainer[int]
    accepted_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, generation: _Optional[_Union[GenerationSpec, _Mapping]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., expert_rows: _Optional[_Iterable[int]] = ..., draining: _Optional[bool] = ..., outstanding_requests: _Optional[int] = ..., decode_profiles: _Optional[_Iterable[_Union[StepProfile, _Mapping]]] = ..., cache_blocks: _Optional[_Iterable[int]] = ..., cache_blocks_used: _Optional[_Iterable[int]] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., last_change: _Optional[_Union[Change, _Mapping]] = ..., change: _Optional[_Union[Change, _Mapping]] = ..., window_expert_rows: _Optional[_Iterable[int]] = ..., window_host_rows: _Optional[_Iterable[int]] = ..., imbalance: _Optional[float] = ..., targets: _Optional[_Union[ScaleTargets, _Mapping]] = ..., stale: _Optional[bool] = ..., gateways: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., outside: _Optional[_Iterable[_Union[OutsideMember, _Mapping]]] = ..., running_requests: _Optional[_Iterable[int]] = ..., queued_requests: _Optional[_Iterable[int]] = ..., draft_tokens: _Optional[_Iterable[int]] = ..., accepted_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class OutsideMember(_message.Message):
    __slots__ = ("member", "outstanding_requests")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    member: MemberSpec
    outstanding_requests: int
    def __init__(self, member: _Optional[_Union[MemberSpec, _Mapping]] = ..., outstanding_requests: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("generation", "kind", "reason", "outcome", "seconds", "unix_s", "routers", "experts", "copies_placed")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    COPIES_PLACED_FIELD_NUMBER: _ClassVar[int]
    generation: int
    kind: str
    reason: str
    outcome: str
    seconds: float
    unix_s: float
    routers: int
    experts: int
    copies_placed: int
    def __init__(self, generation: _Optional[int] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ..., outcome: _Optional[str] = ..., seconds: _Optional[float] = ..., unix_s: _Optional[float] = ..., routers: _Optional[int] = ..., experts: _Optional[int] = ..., copies_placed: _Optional[int] = ...) -> None: ...

class ScaleTargets(_message.Message):
    __slots__ = ("gateway", "router", "experts")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    gateway: int
    router: int
    experts: int
    def __init__(self, gateway: _Optional[int] = ..., router: _Optional[int] = ..., experts: _Optional[int] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginDrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginDrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("deployment", "replicas")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    replicas: int
    def __init__(self, deployment: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("replicas_before",)
    REPLICAS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    replicas_before: int
    def __init__(self, replicas_before: _Optional[int] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("version", "after_generation")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    version: int
    after_generation: int
    def __init__(self, version: _Optional[int] = ..., after_generation: _Optional[int] = ...) -> None: ...

class RebalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RebalanceResponse(_message.Message):
    __slots__ = ("begun", "imbalance")
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    begun: bool
    imbalance: float
    def __init__(self, begun: _Optional[bool] = ..., imbalance: _Optional[float] = ...) -> None: ...
