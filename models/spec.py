"""What an architecture is, as frozen values: parsed once from a checkpoint's config.

No torch here, so that a checkpoint can be checked and placed before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding; YaRN when `factor` is above 1 (arXiv:2309.00071)."""

    dim: int
    theta: float
    interleaved: bool = True
    factor: float = 1.0
    original_max_tokens: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    cos_sin_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434)."""

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    softmax_scale: float
    """With YaRN's mscale squared in it."""
    latent_norm_eps: float = 1e-6
    """Of the norms on the query and key-value latents."""
    bias: bool = False
    """On the projections from and to the hidden state (not on those from the latents)."""

    @property
    def cache_dim(self) -> int:
        """Values a token keeps in the cache: the compressed latent and the shared rotary key."""
        return self.kv_lora_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class GateSpec:
    """How tokens choose experts."""

    scoring: Literal["softmax", "sigmoid"]
    selection: Literal["greedy", "group_max", "group_top2"]
    """Greedy over all; or groups ranked by their best score (V2), or by the sum of their two best (V3)."""
    n_experts: int
    top_k: int
    n_groups: int = 1
    top_k_groups: int = 1
    renormalise: bool = False
    scale: float = 1.0
    correction_bias: bool = False
    """A bias added for selection only (`noaux_tc`)."""


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A SwiGLU feed-forward layer."""

    intermediate: int


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A Mixture-of-Experts feed-forward layer."""

    gate: GateSpec
    intermediate: int
    """Of one routed expert."""
    shared_intermediate: int = 0
    """Of all shared experts together; 0 for none."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer."""

    index: int
    attention: MlaSpec
    ffn: DenseSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    rope: RopeSpec
    norm_eps: float
    max_position_tokens: int
    tie_embeddings: bool
    dtype: Literal["fp32", "bf16"]
    """In which the checkpoint stores its weights."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def moe_layers(self) -> tuple[LayerSpec, ...]:
        """The layers with routed experts, in order. Elsewhere "MoE layer i" is an index into this."""
        return tuple(layer for layer in self.layers if isinstance(layer.ffn, MoeSpec))

    @property
    def n_experts(self) -> int:
        """Routed experts of a MoE layer (0 for a dense model)."""
        for layer in self.layers:
            if isinstance(layer.ffn, MoeSpec):
                return layer.ffn.gate.n_experts
        return 0
