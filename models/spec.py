"""What an architecture is, as frozen values: parsed once from a checkpoint's config.

No torch here, so that a checkpoint can be checked and placed before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from expertmesh.kernels.glu import SWIGLU, Glu
from expertmesh.models.cache_layout import CacheLayout, PoolSpec


@dataclass(frozen=True, slots=True)
class YarnSpec:
    """Frequencies stretched for a longer context (arXiv:2309.00071)."""

    factor: float
    original_max_tokens: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    cos_sin_scale: float = 1.0
    truncate: bool = True
    """Whether the ramp between stretched and plain frequencies begins and ends at whole features."""


@dataclass(frozen=True, slots=True)
class Llama3RopeSpec:
    """Low frequencies divided by `factor`, high ones kept, a smooth change between (Llama 3.1)."""

    factor: float
    original_max_tokens: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of `dim` features."""

    dim: int
    theta: float
    interleaved: bool = True
    """Pairs are neighbours; else the two halves."""
    scaling: YarnSpec | Llama3RopeSpec | None = None


class AttentionSpec(Protocol):
    """One kind of attention. `models.parts.build` knows which part computes it."""

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """What a layer caches, in the order in which its part asks for it."""
        ...


@dataclass(frozen=True, slots=True)
class GateSpec:
    """How tokens choose experts."""

    scoring: Literal["softmax", "sigmoid", "sqrt_softplus"]
    selection: Literal["greedy", "group_max", "group_top2", "table"]
    """Greedy over all; or groups ranked by their best score (V2), or by the sum of their two best (V3); or
    by a table of token ids (V4's hash routing)."""
    n_experts: int
    top_k: int
    n_groups: int = 1
    top_k_groups: int = 1
    renormalise: bool = False
    scale: float = 1.0
    correction_bias: bool = False
    """A bias added to the scores for selection only (`noaux_tc`)."""
    bias: bool = False
    """A bias added to the logits."""


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A gated feed-forward layer."""

    intermediate: int
    glu: Glu = SWIGLU


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A Mixture-of-Experts feed-forward layer."""

    gate: GateSpec
    intermediate: int
    """Of one routed expert."""
    shared_intermediate: int = 0
    """Of all shared experts together; 0 for none."""
    glu: Glu = SWIGLU
    """Of the routed experts and of the shared ones."""
    expert_bias: bool = False
    """Biases in the routed experts."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer."""

    index: int
    attention: AttentionSpec
    ffn: DenseSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class DrafterSpec:
    """A multi-token-prediction module: out of a token's hidden state and the token behind it, it tells the
    one after that.
    """

    layer: LayerSpec
    """Its decoder layer, counted behind the model's last."""


@dataclass(frozen=True, slots=True)
class HyperSpec:
    """Several residual streams, mixed in every layer (manifold-constrained hyper-connections)."""

    n_streams: int
    sinkhorn_iterations: int
    eps: float


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    max_position_tokens: int
    tie_embeddings: bool
    dtype: Literal["fp32", "bf16"]
    """In which the checkpoint stores its weights."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    hyper: HyperSpec | None = None
    """Plain residuals without."""
    drafter: DrafterSpec | None = None
    """What drafts tokens, when it is to be used."""

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """The model's layers, then the drafter's."""
        return self.layers if self.drafter is None else (*self.layers, self.drafter.layer)

    @property
    def moe_layers(self) -> tuple[LayerSpec, ...]:
        """The layers with routed experts, in order, the drafter's last. Elsewhere "MoE layer i" is an index
        into this."""
        return tuple(layer for layer in self.all_layers if isinstance(layer.ffn, MoeSpec))

    @property
    def n_draft_moe_layers(self) -> int:
        """How many of the MoE layers are the drafter's."""
        return int(self.drafter is not None and isinstance(self.drafter.layer.ffn, MoeSpec))

    @property
    def n_experts(self) -> int:
        """Routed experts of a MoE layer (0 for a dense model)."""
        for layer in self.layers:
            if isinstance(layer.ffn, MoeSpec):
                return layer.ffn.gate.n_experts
        return 0

    @property
    def cache(self) -> CacheLayout:
        """What all layers cache."""
        return CacheLayout.of(layer.attention.pools for layer in self.all_layers)
