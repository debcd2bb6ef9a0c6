"""What an architecture's file provides, and the readings that several of them share. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from expertmesh.models.config import ConfigFile
from expertmesh.models.names import TensorNames
from expertmesh.models.rope_config import read_softmax_scale
from expertmesh.models.spec import DenseSpec, GateSpec, LayerSpec, MlaSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the registry."""

    name: str
    """As the config's `architectures` spells it."""
    parse: Callable[[ConfigFile], ModelSpec]
    """Raises CheckpointError naming the key that is wrong or not supported."""
    names: Callable[[ModelSpec], TensorNames]


def read_mla(config: ConfigFile) -> MlaSpec:
    """Multi-head latent attention as DeepSeek's configs describe it."""
    nope_dim, rope_dim = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    return MlaSpec(
        n_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional_integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=config.integer("v_head_dim"),
        softmax_scale=read_softmax_scale(config, head_dim=nope_dim + rope_dim),
        bias=config.flag("attention_bias", False),
    )


def read_layers(config: ConfigFile, attention: MlaSpec, gate: GateSpec) -> tuple[LayerSpec, ...]:
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
