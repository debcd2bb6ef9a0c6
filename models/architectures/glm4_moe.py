"""GLM-4.5 (arXiv:2508.06471): grouped-query attention with biases, norms on heads and half of the features
turned; DeepSeek-V3's gate with one group.
"""

from __future__ import annotations

from expertmesh.models.architectures.base import (
    Architecture,
    read_drafter,
    read_gqa,
    read_layers,
    read_model,
    read_noaux_gate,
)
from expertmesh.models.config import ConfigFile
from expertmesh.models.spec import ModelSpec


def _parse(config: ConfigFile) -> ModelSpec:
    attention = read_gqa(
        config,
        bias=config.flag("attention_bias", False),
        head_norm=config.flag("use_qk_norm", False),
        rotary_share=0.5,
    )
    return read_model(config, GLM4_MOE.name, read_layers(config, attention, read_noaux_gate(config)))


GLM4_MOE = Architecture("Glm4MoeForCausalLM", _parse, drafter=read_drafter)
