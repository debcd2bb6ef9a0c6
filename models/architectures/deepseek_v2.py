"""DeepSeek-V2 and V2-Lite (arXiv:2405.04434): latent attention, softmax gate without renormalisation."""

from __future__ import annotations

from expertmesh.models.architectures.base import Architecture, check_gate, read_layers, read_mla
from expertmesh.models.config import ConfigFile
from expertmesh.models.names import HuggingFaceNames
from expertmesh.models.rope_config import read_rope
from expertmesh.models.spec import GateSpec, ModelSpec


def _parse(config: ConfigFile) -> ModelSpec:
    if config.flag("mlp_bias", False):
        raise config.error("mlp_bias", "biases in the feed-forward layers are not supported")
    attention = read_mla(config)
    return ModelSpec(
        architecture=DEEPSEEK_V2.name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        layers=read_layers(config, attention, _gate(config)),
        rope=read_rope(config, dim=attention.rope_dim, interleaved=True),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        max_position_tokens=config.integer("max_position_embeddings"),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        dtype="bf16",
        eos_token_ids=config.integers("eos_token_id"),
        bos_token_id=config.optional_integer("bos_token_id", minimum=0),
    )


def _gate(config: ConfigFile) -> GateSpec:
    config.choice("scoring_func", ("softmax",), "softmax")
    method = config.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    grouped = method == "group_limited_greedy"
    # The published code reads `norm_topk_prob` and renormalises nothing.
    return check_gate(
        config,
        GateSpec(
            scoring="softmax",
            selection="group_max" if grouped else "greedy",
            n_experts=config.integer("n_routed_experts"),
            top_k=config.integer("num_experts_per_tok"),
            n_groups=config.integer("n_group") if grouped else 1,
            top_k_groups=config.integer("topk_group") if grouped else 1,
            scale=config.number("routed_scaling_factor", 1.0),
        ),
    )


DEEPSEEK_V2 = Architecture("DeepseekV2ForCausalLM", _parse, HuggingFaceNames)
