"""What an architecture's file provides, and the readings that several of them share. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from expertmesh.models.attention_specs import GqaSpec, IndexerSpec, MlaSpec
from expertmesh.models.config import ConfigFile
from expertmesh.models.names import TensorNames
from expertmesh.models.rope_config import read_rope, read_rotary_dim, read_softmax_scale
from expertmesh.models.spec import (
    AttentionSpec,
    DenseSpec,
    DrafterSpec,
    GateSpec,
    HyperSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the registry."""

    name: str
    """As the config's `architectures` spells it."""
    parse: Callable[[ConfigFile], ModelSpec]
    """Raises CheckpointError naming the key that is wrong or not supported."""
    names: type[TensorNames] = TensorNames
    drafter: Callable[[ConfigFile, ModelSpec], DrafterSpec | None] = lambda config, spec: None
    """Its multi-token-prediction module, where a config tells of one."""


def read_model(
    config: ConfigFile,
    name: str,
    layers: tuple[LayerSpec, ...],
    hyper: HyperSpec | None = None,
) -> ModelSpec:
    """What is read alike for every architecture, around its layers."""
    return ModelSpec(
        architecture=name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        layers=layers,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        max_position_tokens=config.integer("max_position_embeddings"),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        dtype="bf16",
        eos_token_ids=config.integers("eos_token_id"),
        bos_token_id=config.optional_integer("bos_token_id", minimum=0),
        hyper=hyper,
    )


def has_drafter(config: ConfigFile) -> bool:
    """Whether the config tells of a multi-token-prediction module.

    Raises:
        CheckpointError: it tells of several.
    """
    n_modules = config.integer("num_nextn_predict_layers", 0, minimum=0)
    if n_modules > 1:
        raise config.error("num_nextn_predict_layers", f"{n_modules} are not supported; supported: 1")
    return n_modules == 1


def read_drafter(config: ConfigFile, spec: ModelSpec) -> DrafterSpec | None:
    """DeepSeek-V3's multi-token-prediction module, a layer as the model's last is."""
    if not has_drafter(config):
        return None
    return DrafterSpec(replace(spec.layers[-1], index=len(spec.layers)))


def read_mla(config: ConfigFile, *, interleaved: bool, indexer: IndexerSpec | None = None) -> MlaSpec:
    """Multi-head latent attention as DeepSeek's configs describe it."""
    nope_dim, rope_dim = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    return MlaSpec(
        n_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional_integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        v_dim=config.integer("v_head_dim"),
        rope=read_rope(config, dim=rope_dim, interleaved=interleaved),
        softmax_scale=read_softmax_scale(config, head_dim=nope_dim + rope_dim),
        bias=config.flag("attention_bias", False),
        indexer=indexer,
    )


def read_gqa(
    config: ConfigFile,
    *,
    bias: bool = False,
    out_bias: bool = False,
    head_norm: bool = False,
    window: int | None = None,
    sinks: bool = False,
    rotary_share: float = 1.0,
) -> GqaSpec:
    """Grouped-query attention as Llama's configs and those after them describe it.

    Raises:
        CheckpointError: the head counts do not fit each other.
    """
    n_heads = config.integer("num_attention_heads")
    n_kv_heads = config.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise config.error("num_key_value_heads", f"{n_kv_heads} key heads do not divide {n_heads} heads")
    head_dim = config.integer("head_dim", config.integer("hidden_size") // n_heads)
    return GqaSpec(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=read_rope(config, dim=read_rotary_dim(config, head_dim, rotary_share), interleaved=False),
        bias=bias,
        out_bias=out_bias,
        head_norm_eps=config.number("rms_norm_eps", 1e-6) if head_norm else None,
        window=window,
        sinks=sinks,
    )


def read_layers(config: ConfigFile, attention: AttentionSpec, gate: GateSpec) -> tuple[LayerSpec, ...]:
    """Dense layers first, then MoE layers (every `moe_layer_freq`-th), as DeepSeek's configs count them."""
    config.choice("hidden_act", ("silu",), "silu")
    n_dense = config.integer("first_k_dense_replace", 0, minimum=0)
    stride = config.integer("moe_layer_freq", 1)
    expert_rows = config.integer("moe_intermediate_size")
    dense = DenseSpec(config.integer("intermediate_size"))
    moe = MoeSpec(
        gate=gate,
        intermediate=expert_rows,
        shared_intermediate=expert_rows * config.integer("n_shared_experts", 0, minimum=0),
    )
    return tuple(
        LayerSpec(index, attention, moe if index >= n_dense and index % stride == 0 else dense)
        for index in range(config.integer("num_hidden_layers"))
    )


def read_noaux_gate(config: ConfigFile) -> GateSpec:
    """DeepSeek-V3's gate: sigmoid, with a correction bias that counts for the selection only."""
    config.choice("scoring_func", ("sigmoid",), "sigmoid")
    config.choice("topk_method", ("noaux_tc",), "noaux_tc")
    n_groups = config.integer("n_group", 1)
    return check_gate(
        config,
        GateSpec(
            scoring="sigmoid",
            selection="greedy" if n_groups == 1 else "group_top2",
            n_experts=config.integer("n_routed_experts"),
            top_k=config.integer("num_experts_per_tok"),
            n_groups=n_groups,
            top_k_groups=config.integer("topk_group", 1),
            renormalise=config.flag("norm_topk_prob", True),
            scale=config.number("routed_scaling_factor", 1.0),
            correction_bias=True,
        ),
    )


def check_gate(config: ConfigFile, gate: GateSpec) -> GateSpec:
    """The gate itself, once its counts fit each other; keys are DeepSeek's.

    Raises:
        CheckpointError: names the key whose count does not fit.
    """
    if gate.n_experts % gate.n_groups:
        raise config.error("n_group", f"{gate.n_groups} groups do not divide {gate.n_experts} experts")
    if gate.top_k_groups > gate.n_groups:
        raise config.error("topk_group", f"{gate.top_k_groups} of {gate.n_groups} groups cannot be kept")
    group_experts = gate.n_experts // gate.n_groups
    if gate.selection == "group_top2" and group_experts < 2:
        raise config.error("n_group", "groups of at least two experts are needed")
    if gate.top_k > gate.top_k_groups * group_experts:
        raise config.error(
            "num_experts_per_tok", f"{gate.top_k} experts cannot be chosen out of the groups that are kept"
        )
    return gate
