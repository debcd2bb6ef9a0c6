"""How a checkpoint's tensors are called: what most checkpoints share. No torch here.

An architecture with other names overrides what differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from expertmesh.models.attention_specs import GqaSpec, MlaSpec
from expertmesh.models.spec import DenseSpec, DrafterSpec, LayerSpec, ModelSpec, MoeSpec
from expertmesh.models.tensors import (
    AttentionTensors,
    DrafterTensors,
    ExpertTensors,
    GateTensors,
    GqaTensors,
    HyperTensors,
    IndexerTensors,
    LayerTensors,
    LinearTensors,
    MlaTensors,
    MoeTensors,
    NormTensors,
    SwigluTensors,
    TensorRef,
    tensor_refs,
)


class TensorNames:
    """The naming of Hugging Face's Llama, which most families follow."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.hidden = spec.hidden_size

    @staticmethod
    def canonical(stored: str) -> str:
        """The name by which a stored tensor goes here, where checkpoints of one family differ."""
        return stored

    def embedding(self) -> TensorRef:
        """[vocab, hidden]."""
        return TensorRef("model.embed_tokens.weight", (self.spec.vocab_size, self.hidden))

    def final_norm(self) -> TensorRef:
        """[hidden]."""
        return TensorRef("model.norm.weight", (self.hidden,))

    def head(self) -> TensorRef:
        """[vocab, hidden]; the embedding where the two are tied."""
        if self.spec.tie_embeddings:
            return self.embedding()
        return TensorRef("lm_head.weight", (self.spec.vocab_size, self.hidden))

    def head_hyper(self) -> HyperTensors | None:
        """What makes one of the residual streams in front of the final norm."""
        return None

    def prefix(self, layer: LayerSpec) -> str:
        """Of a layer's tensors."""
        return f"model.layers.{layer.index}"

    def layer(self, layer: LayerSpec) -> LayerTensors:
        """One layer without its routed experts."""
        prefix = self.prefix(layer)
        return LayerTensors(
            attention_norm=TensorRef(f"{prefix}.input_layernorm.weight", (self.hidden,)),
            attention=self.attention(layer),
            ffn_norm=TensorRef(f"{prefix}.post_attention_layernorm.weight", (self.hidden,)),
            ffn=self.ffn(layer),
        )

    def drafter(self, drafter: DrafterSpec) -> DrafterTensors:
        """A multi-token-prediction module without its routed experts."""
        prefix = self.prefix(drafter.layer)
        return DrafterTensors(
            embedding_norm=TensorRef(f"{prefix}.enorm.weight", (self.hidden,)),
            hidden_norm=TensorRef(f"{prefix}.hnorm.weight", (self.hidden,)),
            join=linear(f"{prefix}.eh_proj", self.hidden, 2 * self.hidden),
            embedding=None,
            hidden=None,
            layer=self.layer(drafter.layer),
            head_hyper=None,
            final_norm=TensorRef(f"{prefix}.shared_head.norm.weight", (self.hidden,)),
        )

    def ffn(self, layer: LayerSpec) -> SwigluTensors | MoeTensors:
        """A layer's feed-forward part."""
        if isinstance(layer.ffn, MoeSpec):
            return self.moe(layer, layer.ffn)
        return self.dense(layer, layer.ffn)

    def attention(self, layer: LayerSpec) -> AttentionTensors:
        """A layer's attention."""
        prefix = f"{self.prefix(layer)}.self_attn"
        match layer.attention:
            case MlaSpec() as mla:
                return self.mla(prefix, mla)
            case GqaSpec() as gqa:
                return self.gqa(prefix, gqa)
            case other:
                raise TypeError(f"the names of {self.spec.architecture} know no {type(other).__name__}")

    def mla(self, prefix: str, spec: MlaSpec) -> MlaTensors:
        """Multi-head latent attention."""
        heads, rank = spec.n_heads, spec.q_lora_rank
        q_rows = heads * (spec.nope_dim + spec.rope_dim)
        return MlaTensors(
            q_a=None if rank is None else linear(f"{prefix}.q_a_proj", rank, self.hidden, spec.bias),
            q_a_norm=None if rank is None else TensorRef(f"{prefix}.q_a_layernorm.weight", (rank,)),
            q=linear(f"{prefix}.q_proj", q_rows, self.hidden)
            if rank is None
            else linear(f"{prefix}.q_b_proj", q_rows, rank),
            kv_a=linear(f"{prefix}.kv_a_proj_with_mqa", spec.cache_dim, self.hidden, spec.bias),
            kv_a_norm=TensorRef(f"{prefix}.kv_a_layernorm.weight", (spec.kv_lora_rank,)),
            kv_b=TensorRef(
                f"{prefix}.kv_b_proj.weight", (heads * (spec.nope_dim + spec.v_dim), spec.kv_lora_rank)
            ),
            o=linear(f"{prefix}.o_proj", self.hidden, heads * spec.v_dim, spec.bias),
            indexer=None if spec.indexer is None else self.indexer(f"{prefix}.indexer", spec),
        )

    def indexer(self, prefix: str, spec: MlaSpec) -> IndexerTensors:
        """The lightning indexer beside latent attention."""
        index = spec.indexer
        if index is None or spec.q_lora_rank is None:
            raise TypeError("an indexer takes its queries from a query latent")
        return IndexerTensors(
            q=linear(f"{prefix}.wq_b", index.n_heads * index.head_dim, spec.q_lora_rank),
            k=linear(f"{prefix}.wk", index.head_dim, self.hidden),
            k_norm=NormTensors(
                TensorRef(f"{prefix}.k_norm.weight", (index.head_dim,)),
                TensorRef(f"{prefix}.k_norm.bias", (index.head_dim,)),
            ),
            weights=linear(f"{prefix}.weights_proj", index.n_heads, self.hidden),
        )

    def gqa(self, prefix: str, spec: GqaSpec) -> GqaTensors:
        """Grouped-query attention."""
        q_dim, kv_dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        normed = spec.head_norm_eps is not None
        return GqaTensors(
            q=linear(f"{prefix}.q_proj", q_dim, self.hidden, spec.bias),
            k=linear(f"{prefix}.k_proj", kv_dim, self.hidden, spec.bias),
            v=linear(f"{prefix}.v_proj", kv_dim, self.hidden, spec.bias),
            o=linear(f"{prefix}.o_proj", self.hidden, q_dim, spec.out_bias),
            q_norm=TensorRef(f"{prefix}.q_norm.weight", (spec.head_dim,)) if normed else None,
            k_norm=TensorRef(f"{prefix}.k_norm.weight", (spec.head_dim,)) if normed else None,
            sinks=TensorRef(f"{prefix}.sinks", (spec.n_heads,)) if spec.sinks else None,
        )

    def dense(self, layer: LayerSpec, spec: DenseSpec) -> SwigluTensors:
        """A dense layer's feed-forward network."""
        return swiglu(f"{self.prefix(layer)}.mlp", self.hidden, spec.intermediate)

    def moe(self, layer: LayerSpec, spec: MoeSpec) -> MoeTensors:
        """A MoE layer's router and shared experts."""
        return MoeTensors(
            gate=self.gate(layer, spec),
            shared=self.shared(layer, spec) if spec.shared_intermediate else None,
        )

    def gate(self, layer: LayerSpec, spec: MoeSpec) -> GateTensors:
        """A MoE layer's router."""
        prefix, n_experts = f"{self.prefix(layer)}.mlp.gate", spec.gate.n_experts
        return GateTensors(
            weight=TensorRef(f"{prefix}.weight", (n_experts, self.hidden)),
            correction_bias=TensorRef(f"{prefix}.e_score_correction_bias", (n_experts,))
            if spec.gate.correction_bias
            else None,
        )

    def shared(self, layer: LayerSpec, spec: MoeSpec) -> SwigluTensors:
        """A MoE layer's shared experts, stored as one network."""
        return swiglu(f"{self.prefix(layer)}.mlp.shared_experts", self.hidden, spec.shared_intermediate)

    def expert(self, layer: LayerSpec, spec: MoeSpec, expert: int) -> ExpertTensors:
        """One routed expert of a MoE layer."""
        return swiglu(f"{self.prefix(layer)}.mlp.experts.{expert}", self.hidden, spec.intermediate)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor may be there although serving does not need it."""
        if name == "lm_head.weight" or name.endswith(".rotary_emb.inv_freq"):
            return True
        # Layers behind the last are multi-token-prediction modules, with copies of embedding and head.
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return match is not None and int(match[1]) >= len(self.spec.layers)


def router_tensors(names: TensorNames, spec: ModelSpec) -> Iterator[TensorRef]:
    """Every tensor that serving the model needs, except the routed experts'."""
    yield names.embedding()
    yield names.final_norm()
    if not spec.tie_embeddings:
        yield names.head()
    yield from tensor_refs(names.head_hyper())
    for layer in spec.layers:
        yield from tensor_refs(names.layer(layer))
    if spec.drafter is not None:
        yield from tensor_refs(names.drafter(spec.drafter))


def expected_tensors(names: TensorNames, spec: ModelSpec) -> Iterator[TensorRef]:
    """Every tensor that serving the model needs."""
    yield from router_tensors(names, spec)
    for layer in spec.moe_layers:
        for expert in range(spec.n_experts):
            yield from tensor_refs(expert_tensors(names, spec, layer, expert))


def expert_tensors(names: TensorNames, spec: ModelSpec, layer: LayerSpec, expert: int) -> ExpertTensors:
    """One routed expert's tensors; the layer must be a MoE layer."""
    if not isinstance(layer.ffn, MoeSpec):
        raise TypeError(f"layer {layer.index} of {spec.architecture} has no routed experts")
    return names.expert(layer, layer.ffn, expert)


def linear(prefix: str, n_out: int, n_in: int, bias: bool = False) -> LinearTensors:
    """`prefix.weight` and, with a bias, `prefix.bias`."""
    return LinearTensors(
        TensorRef(f"{prefix}.weight", (n_out, n_in)),
        TensorRef(f"{prefix}.bias", (n_out,)) if bias else None,
    )


def swiglu(
    prefix: str,
    hidden: int,
    intermediate: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> SwigluTensors:
    """A gated network whose three weights stand behind one prefix."""
    gate, up, down = names
    return SwigluTensors(
        gate=TensorRef(f"{prefix}.{gate}.weight", (intermediate, hidden)),
        up=TensorRef(f"{prefix}.{up}.weight", (intermediate, hidden)),
        down=TensorRef(f"{prefix}.{down}.weight", (hidden, intermediate)),
    )
