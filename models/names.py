"""Which tensors a checkpoint must hold, with their shapes: functions from layer and expert to names.

No torch here. Several architectures share one naming; an architecture picks its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from expertmesh.models.spec import DenseSpec, LayerSpec, MlaSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor in a checkpoint: its name and the shape that it must have."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinearTensors:
    """A projection's weight [out, in] and, where the model has one, its bias [out]."""

    weight: TensorRef
    bias: TensorRef | None = None


@dataclass(frozen=True, slots=True)
class SwigluTensors:
    """One SwiGLU network: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    gate: TensorRef
    up: TensorRef
    down: TensorRef


@dataclass(frozen=True, slots=True)
class MlaTensors:
    """Multi-head latent attention. `q_a` and `q_a_norm` are absent without a query LoRA."""

    q_a: LinearTensors | None
    q_a_norm: TensorRef | None
    q: LinearTensors
    """From the query latent to the heads, or straight from the hidden state."""
    kv_a: LinearTensors
    kv_a_norm: TensorRef
    kv_b: TensorRef
    o: LinearTensors


@dataclass(frozen=True, slots=True)
class GateTensors:
    """A router's weight [experts, hidden] and its selection bias [experts]."""

    weight: TensorRef
    correction_bias: TensorRef | None


class TensorNames(Protocol):
    """The names of one checkpoint's tensors."""

    def embedding(self) -> TensorRef:
        """[vocab, hidden]."""
        ...

    def final_norm(self) -> TensorRef:
        """[hidden]."""
        ...

    def head(self) -> TensorRef:
        """[vocab, hidden]; the embedding where the two are tied."""
        ...

    def attention_norm(self, layer: LayerSpec) -> TensorRef:
        """The norm in front of attention, [hidden]."""
        ...

    def ffn_norm(self, layer: LayerSpec) -> TensorRef:
        """The norm in front of the feed-forward part, [hidden]."""
        ...

    def mla(self, layer: LayerSpec, spec: MlaSpec) -> MlaTensors:
        """A layer's latent attention."""
        ...

    def dense(self, layer: LayerSpec, spec: DenseSpec) -> SwigluTensors:
        """A dense layer's feed-forward network."""
        ...

    def gate(self, layer: LayerSpec, spec: MoeSpec) -> GateTensors:
        """A MoE layer's router."""
        ...

    def shared(self, layer: LayerSpec, spec: MoeSpec) -> SwigluTensors:
        """A MoE layer's shared experts, stored as one network."""
        ...

    def expert(self, layer: LayerSpec, spec: MoeSpec, expert: int) -> SwigluTensors:
        """One routed expert of a MoE layer."""
        ...

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor may be there although serving does not need it."""
        ...


class HuggingFaceNames:
    """The naming that DeepSeek V2 to V3.2 and Kimi share."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._hidden = spec.hidden_size

    def embedding(self) -> TensorRef:
        return TensorRef("model.embed_tokens.weight", (self._spec.vocab_size, self._hidden))

    def final_norm(self) -> TensorRef:
        return TensorRef("model.norm.weight", (self._hidden,))

    def head(self) -> TensorRef:
        if self._spec.tie_embeddings:
            return self.embedding()
        return TensorRef("lm_head.weight", (self._spec.vocab_size, self._hidden))

    def attention_norm(self, layer: LayerSpec) -> TensorRef:
        return TensorRef(f"{_prefix(layer)}.input_layernorm.weight", (self._hidden,))

    def ffn_norm(self, layer: LayerSpec) -> TensorRef:
        return TensorRef(f"{_prefix(layer)}.post_attention_layernorm.weight", (self._hidden,))

    def mla(self, layer: LayerSpec, spec: MlaSpec) -> MlaTensors:
        prefix = f"{_prefix(layer)}.self_attn"
        heads, rank = spec.n_heads, spec.q_lora_rank
        q_rows = heads * (spec.nope_dim + spec.rope_dim)
        return MlaTensors(
            q_a=None if rank is None else _linear(f"{prefix}.q_a_proj", rank, self._hidden, spec.bias),
            q_a_norm=None if rank is None else TensorRef(f"{prefix}.q_a_layernorm.weight", (rank,)),
            q=_linear(f"{prefix}.q_proj", q_rows, self._hidden)
            if rank is None
            else _linear(f"{prefix}.q_b_proj", q_rows, rank),
            kv_a=_linear(f"{prefix}.kv_a_proj_with_mqa", spec.cache_dim, self._hidden, spec.bias),
            kv_a_norm=TensorRef(f"{prefix}.kv_a_layernorm.weight", (spec.kv_lora_rank,)),
            kv_b=TensorRef(
                f"{prefix}.kv_b_proj.weight", (heads * (spec.nope_dim + spec.v_dim), spec.kv_lora_rank)
            ),
            o=_linear(f"{prefix}.o_proj", self._hidden, heads * spec.v_dim, spec.bias),
        )

    def dense(self, layer: LayerSpec, spec: DenseSpec) -> SwigluTensors:
        return _swiglu(f"{_prefix(layer)}.mlp", self._hidden, spec.intermediate)

    def gate(self, layer: LayerSpec, spec: MoeSpec) -> GateTensors:
        prefix, n_experts = f"{_prefix(layer)}.mlp.gate", spec.gate.n_experts
        return GateTensors(
            weight=TensorRef(f"{prefix}.weight", (n_experts, self._hidden)),
            correction_bias=TensorRef(f"{prefix}.e_score_correction_bias", (n_experts,))
            if spec.gate.correction_bias
            else None,
        )

    def shared(self, layer: LayerSpec, spec: MoeSpec) -> SwigluTensors:
        return _swiglu(f"{_prefix(layer)}.mlp.shared_experts", self._hidden, spec.shared_intermediate)

    def expert(self, layer: LayerSpec, spec: MoeSpec, expert: int) -> SwigluTensors:
        return _swiglu(f"{_prefix(layer)}.mlp.experts.{expert}", self._hidden, spec.intermediate)

    def is_ignored(self, name: str) -> bool:
        if name == "lm_head.weight" or name.endswith(".rotary_emb.inv_freq"):
            return True
        # Layers behind the last are multi-token-prediction modules.
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return match is not None and int(match[1]) >= len(self._spec.layers)


def router_tensors(names: TensorNames, spec: ModelSpec) -> Iterator[TensorRef]:
    """Every tensor that serving the model needs, except the routed experts'."""
    yield names.embedding()
    yield names.final_norm()
    if not spec.tie_embeddings:
        yield names.head()
    for layer in spec.layers:
        yield names.attention_norm(layer)
        yield names.ffn_norm(layer)
        yield from _mla_refs(names.mla(layer, layer.attention))
        if isinstance(layer.ffn, DenseSpec):
            yield from swiglu_refs(names.dense(layer, layer.ffn))
        else:
            yield from _gate_refs(names.gate(layer, layer.ffn))
            if layer.ffn.shared_intermediate:
                yield from swiglu_refs(names.shared(layer, layer.ffn))


def expected_tensors(names: TensorNames, spec: ModelSpec) -> Iterator[TensorRef]:
    """Every tensor that serving the model needs."""
    yield from router_tensors(names, spec)
    for layer in spec.moe_layers:
        for expert in range(spec.n_experts):
            yield from swiglu_refs(expert_tensors(names, spec, layer, expert))


def expert_tensors(names: TensorNames, spec: ModelSpec, layer: LayerSpec, expert: int) -> SwigluTensors:
    """One routed expert's tensors; the layer must be a MoE layer."""
    if not isinstance(layer.ffn, MoeSpec):
        raise TypeError(f"layer {layer.index} of {spec.architecture} has no routed experts")
    return names.expert(layer, layer.ffn, expert)


def swiglu_refs(tensors: SwigluTensors) -> tuple[TensorRef, ...]:
    """The tensors of one SwiGLU network."""
    return (tensors.gate, tensors.up, tensors.down)


def _mla_refs(tensors: MlaTensors) -> Iterator[TensorRef]:
    for linear in (tensors.q_a, tensors.q, tensors.kv_a, tensors.o):
        if linear is not None:
            yield linear.weight
            if linear.bias is not None:
                yield linear.bias
    if tensors.q_a_norm is not None:
        yield tensors.q_a_norm
    yield tensors.kv_a_norm
    yield tensors.kv_b


def _gate_refs(tensors: GateTensors) -> Iterator[TensorRef]:
    yield tensors.weight
    if tensors.correction_bias is not None:
        yield tensors.correction_bias


def _prefix(layer: LayerSpec) -> str:
    return f"model.layers.{layer.index}"


def _linear(prefix: str, n_out: int, n_in: int, bias: bool = False) -> LinearTensors:
    return LinearTensors(
        TensorRef(f"{prefix}.weight", (n_out, n_in)),
        TensorRef(f"{prefix}.bias", (n_out,)) if bias else None,
    )


def _swiglu(prefix: str, hidden: int, intermediate: int) -> SwigluTensors:
    return SwigluTensors(
        gate=TensorRef(f"{prefix}.gate_proj.weight", (intermediate, hidden)),
        up=TensorRef(f"{prefix}.up_proj.weight", (intermediate, hidden)),
        down=TensorRef(f"{prefix}.down_proj.weight", (hidden, intermediate)),
    )
