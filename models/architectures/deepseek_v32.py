"""DeepSeek-V3.2 (arXiv:2512.02556): V3 with sparse attention, whose tokens a lightning indexer chooses."""

from __future__ import annotations

from expertmesh.models.architectures.base import (
    Architecture,
    read_drafter,
    read_layers,
    read_mla,
    read_model,
    read_noaux_gate,
)
from expertmesh.models.attention_specs import IndexerSpec
from expertmesh.models.config import ConfigFile
from expertmesh.models.spec import ModelSpec


def _parse(config: ConfigFile) -> ModelSpec:
    indexer = IndexerSpec(
        n_heads=config.integer("index_n_heads"),
        head_dim=config.integer("index_head_dim"),
        top_k=config.integer("index_topk"),
    )
    if indexer.head_dim < config.integer("qk_rope_head_dim"):
        raise config.error("index_head_dim", "an index key holds the rotary features and cannot be smaller")
    if not config.has("q_lora_rank"):
        raise config.error("q_lora_rank", "the indexer takes its queries from a query latent")
    attention = read_mla(config, interleaved=True, indexer=indexer)
    return read_model(config, DEEPSEEK_V32.name, read_layers(config, attention, read_noaux_gate(config)))


DEEPSEEK_V32 = Architecture("DeepseekV32ForCausalLM", _parse, drafter=read_drafter)
