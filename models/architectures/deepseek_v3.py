"""DeepSeek-V3 and R1 (arXiv:2412.19437) and Kimi-K2, the same architecture with one expert group.

Latent attention; a sigmoid gate whose correction bias counts for the selection only.
"""

from __future__ import annotations

from expertmesh.models.architectures.base import (
    Architecture,
    read_drafter,
    read_layers,
    read_mla,
    read_model,
    read_noaux_gate,
)
from expertmesh.models.config import ConfigFile
from expertmesh.models.spec import ModelSpec


def _parse(config: ConfigFile) -> ModelSpec:
    attention = read_mla(config, interleaved=config.flag("rope_interleave", True))
    return read_model(config, DEEPSEEK_V3.name, read_layers(config, attention, read_noaux_gate(config)))


DEEPSEEK_V3 = Architecture("DeepseekV3ForCausalLM", _parse, drafter=read_drafter)
