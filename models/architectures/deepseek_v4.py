"""DeepSeek-V4, Flash and Pro: shared-key attention in a window and over compressed rows, several residual
streams, experts chosen by the square root of softplus or, in the first layers, by the token itself.
"""

from __future__ import annotations

import re
from dataclasses import replace

from expertmesh.kernels.glu import Glu
from expertmesh.models.architectures.base import Architecture, check_gate, has_drafter, read_model
from expertmesh.models.attention_specs import IndexerSpec, SharedKvSpec
from expertmesh.models.config import ConfigFile
from expertmesh.models.names import TensorNames, linear, swiglu
from expertmesh.models.rope_config import read_rotary_dim, read_scaling
from expertmesh.models.spec import (
    DrafterSpec,
    GateSpec,
    HyperSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    RopeSpec,
    YarnSpec,
)
from expertmesh.models.tensors import (
    CompressorTensors,
    DrafterTensors,
    GateTensors,
    HyperTensors,
    LayerTensors,
    RowIndexerTensors,
    SharedKvTensors,
    SwigluTensors,
    TensorRef,
)

_SLIDING, _SPARSE, _HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)


def _parse(config: ConfigFile) -> ModelSpec:
    config.choice("hidden_act", ("silu",), "silu")
    n_layers = config.integer("num_hidden_layers")
    ratios = _ratios(config, n_layers)
    hashed = _hashed(config, n_layers)
    layers = tuple(
        LayerSpec(index, _attention(config, ratios[index]), _moe(config, hashed[index]))
        for index in range(n_layers)
    )
    hyper = HyperSpec(
        n_streams=config.integer("hc_mult"),
        sinkhorn_iterations=config.integer("hc_sinkhorn_iters"),
        eps=config.number("hc_eps", 1e-6),
    )
    return read_model(config, DEEPSEEK_V4.name, layers, hyper)


def _drafter(config: ConfigFile, spec: ModelSpec) -> DrafterSpec | None:
    """Its layer has a window alone, and experts that the gate chooses."""
    if not has_drafter(config):
        return None
    attention, moe = _attention(config, (0, False)), _moe(config, hashed=False)
    return DrafterSpec(LayerSpec(len(spec.layers), attention, moe))


def _ratios(config: ConfigFile, n_layers: int) -> list[tuple[int, bool]]:
    """For each layer the tokens of a compressed row (0 for none), and whether an indexer chooses rows.

    Published configs count them (`compress_ratios`, with the extra layer for drafts behind the last);
    transformers names the layers' kinds. The pattern has no default here: Flash and Pro differ.
    """
    rates = config.section("compress_rates")
    sparse = rates.integer(_SPARSE, 4) if rates is not None else config.integer("compress_rate_csa", 4)
    heavy = rates.integer(_HEAVY, 128) if rates is not None else config.integer("compress_rate_hca", 128)
    known = {_SLIDING: (0, False), _SPARSE: (sparse, True), _HEAVY: (heavy, False)}
    if config.has("layer_types"):
        key, named = "layer_types", list(config.strings("layer_types"))
    else:
        key, by_ratio = "compress_ratios", {0: _SLIDING, sparse: _SPARSE, heavy: _HEAVY}
        named = [by_ratio.get(ratio, str(ratio)) for ratio in config.integers(key)][:n_layers]
    if len(named) != n_layers or not set(named) <= set(known):
        raise config.error(key, f"the kinds of {n_layers} layers are needed: {', '.join(known)}")
    return [known[name] for name in named]


def _hashed(config: ConfigFile, n_layers: int) -> list[bool]:
    """Whether a layer's experts are chosen by the token alone."""
    if not config.has("mlp_layer_types"):
        return [index < config.integer("num_hash_layers", 3, minimum=0) for index in range(n_layers)]
    named = config.strings("mlp_layer_types")
    if len(named) != n_layers or not set(named) <= {"hash_moe", "moe"}:
        raise config.error("mlp_layer_types", f"{n_layers} of hash_moe or moe are needed")
    return [name == "hash_moe" for name in named]


def _attention(config: ConfigFile, kind: tuple[int, bool]) -> SharedKvSpec:
    ratio, has_indexer = kind
    head_dim = config.integer("head_dim")
    indexer = IndexerSpec(
        n_heads=config.integer("index_n_heads"),
        head_dim=config.integer("index_head_dim"),
        top_k=config.integer("index_topk"),
    )
    return SharedKvSpec(
        n_heads=config.integer("num_attention_heads"),
        head_dim=head_dim,
        q_lora_rank=config.integer("q_lora_rank"),
        o_groups=config.integer("o_groups"),
        o_lora_rank=config.integer("o_lora_rank"),
        window=config.integer("sliding_window"),
        rope=_rope(config, head_dim, compressed=ratio > 0),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        ratio=ratio,
        indexer=indexer if has_indexer else None,
    )


def _rope(config: ConfigFile, head_dim: int, *, compressed: bool) -> RopeSpec:
    """Layers with compressed rows turn by other angles, stretched by YaRN without its sharpening."""
    dim = config.integer("qk_rope_head_dim", read_rotary_dim(config, head_dim, 64 / 512))
    saved = config.section("rope_parameters")
    if not compressed:
        section = saved.section("main") if saved is not None else None
        return RopeSpec(dim, (section or config).number("rope_theta", 10000.0))
    section = saved.section("compress") if saved is not None else config.section("rope_scaling")
    theta = config.number("compress_rope_theta", 160000.0)
    if saved is not None and section is not None:
        theta = section.number("rope_theta", theta)
    scaling = read_scaling(config, section)
    if isinstance(scaling, YarnSpec):
        scaling = replace(scaling, cos_sin_scale=1.0)
    return RopeSpec(dim, theta, scaling=scaling)


def _moe(config: ConfigFile, hashed: bool) -> MoeSpec:
    config.choice("scoring_func", ("sqrtsoftplus",), "sqrtsoftplus")
    config.choice("topk_method", ("noaux_tc",), "noaux_tc")
    expert_rows = config.integer("moe_intermediate_size")
    gate = GateSpec(
        scoring="sqrt_softplus",
        selection="table" if hashed else "greedy",
        n_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        renormalise=True,
        scale=config.number("routed_scaling_factor", 1.5),
        correction_bias=not hashed,
    )
    return MoeSpec(
        check_gate(config, gate),
        expert_rows,
        shared_intermediate=expert_rows * config.integer("n_shared_experts", 1, minimum=0),
        glu=Glu(limit=config.number("swiglu_limit", 10.0)),
    )


class DeepseekV4Names(TensorNames):
    """As published; transformers puts `model.` before most names and calls a few otherwise."""

    @staticmethod
    def canonical(stored: str) -> str:
        name = stored.removeprefix("model.").replace("hc_head.hc_", "hc_head_")
        name = re.sub(r"^embed_tokens\.", "embed.", re.sub(r"^lm_head\.", "head.", name))
        return name.replace(".attn.norm.", ".attn.kv_norm.")

    def embedding(self) -> TensorRef:
        return TensorRef("embed.weight", (self.spec.vocab_size, self.hidden))

    def final_norm(self) -> TensorRef:
        return TensorRef("norm.weight", (self.hidden,))

    def head(self) -> TensorRef:
        if self.spec.tie_embeddings:
            return self.embedding()
        return TensorRef("head.weight", (self.spec.vocab_size, self.hidden))

    def head_hyper(self) -> HyperTensors | None:
        return self._head_hyper("hc_head")

    def prefix(self, layer: LayerSpec) -> str:
        behind = layer.index - len(self.spec.layers)
        return f"layers.{layer.index}" if behind < 0 else f"mtp.{behind}"

    def layer(self, layer: LayerSpec) -> LayerTensors:
        prefix, n = self.prefix(layer), self.spec.hyper.n_streams if self.spec.hyper is not None else 0
        return LayerTensors(
            attention_norm=TensorRef(f"{prefix}.attn_norm.weight", (self.hidden,)),
            attention=self.attention(layer),
            ffn_norm=TensorRef(f"{prefix}.ffn_norm.weight", (self.hidden,)),
            ffn=self.ffn(layer),
            attention_hyper=self._hyper(f"{prefix}.hc_attn", (2 + n) * n, 3),
            ffn_hyper=self._hyper(f"{prefix}.hc_ffn", (2 + n) * n, 3),
        )

    def drafter(self, drafter: DrafterSpec) -> DrafterTensors:
        prefix = self.prefix(drafter.layer)
        return DrafterTensors(
            embedding_norm=TensorRef(f"{prefix}.enorm.weight", (self.hidden,)),
            hidden_norm=TensorRef(f"{prefix}.hnorm.weight", (self.hidden,)),
            join=None,
            embedding=linear(f"{prefix}.e_proj", self.hidden, self.hidden),
            hidden=linear(f"{prefix}.h_proj", self.hidden, self.hidden),
            layer=self.layer(drafter.layer),
            head_hyper=self._head_hyper(f"{prefix}.hc_head"),
            final_norm=TensorRef(f"{prefix}.norm.weight", (self.hidden,)),
        )

    def attention(self, layer: LayerSpec) -> SharedKvTensors:
        spec, prefix = layer.attention, f"{self.prefix(layer)}.attn"
        assert isinstance(spec, SharedKvSpec)
        rank, width, index = spec.q_lora_rank, spec.head_dim, spec.indexer
        heads_width = spec.n_heads * width
        indexer = None
        if index is not None:
            indexer = RowIndexerTensors(
                q=linear(f"{prefix}.indexer.wq_b", index.n_heads * index.head_dim, rank),
                weights=linear(f"{prefix}.indexer.weights_proj", index.n_heads, self.hidden),
                compressor=self._compressor(f"{prefix}.indexer.compressor", spec, index.head_dim),
            )
        return SharedKvTensors(
            q_a=linear(f"{prefix}.wq_a", rank, self.hidden),
            q_a_norm=TensorRef(f"{prefix}.q_norm.weight", (rank,)),
            q_b=linear(f"{prefix}.wq_b", heads_width, rank),
            kv=linear(f"{prefix}.wkv", width, self.hidden),
            kv_norm=TensorRef(f"{prefix}.kv_norm.weight", (width,)),
            o_a=TensorRef(
                f"{prefix}.wo_a.weight", (spec.o_groups * spec.o_lora_rank, heads_width // spec.o_groups)
            ),
            o_b=linear(f"{prefix}.wo_b", self.hidden, spec.o_groups * spec.o_lora_rank),
            sinks=TensorRef(f"{prefix}.attn_sink", (spec.n_heads,)),
            compressor=self._compressor(f"{prefix}.compressor", spec, width) if spec.ratio else None,
            indexer=indexer,
        )

    def gate(self, layer: LayerSpec, spec: MoeSpec) -> GateTensors:
        prefix, gate = f"{self.prefix(layer)}.ffn.gate", spec.gate
        hashed = gate.selection == "table"
        table = TensorRef(f"{prefix}.tid2eid", (self.spec.vocab_size, gate.top_k), integer=True)
        return GateTensors(
            weight=TensorRef(f"{prefix}.weight", (gate.n_experts, self.hidden)),
            correction_bias=None if hashed else TensorRef(f"{prefix}.bias", (gate.n_experts,)),
            table=table if hashed else None,
        )

    def shared(self, layer: LayerSpec, spec: MoeSpec) -> SwigluTensors:
        prefix = f"{self.prefix(layer)}.ffn.shared_experts"
        return swiglu(prefix, self.hidden, spec.shared_intermediate, ("w1", "w3", "w2"))

    def expert(self, layer: LayerSpec, spec: MoeSpec, expert: int) -> SwigluTensors:
        prefix = f"{self.prefix(layer)}.ffn.experts.{expert}"
        return swiglu(prefix, self.hidden, spec.intermediate, ("w1", "w3", "w2"))

    def is_ignored(self, name: str) -> bool:
        return name.startswith("mtp.") or name == "head.weight"

    def _compressor(self, prefix: str, spec: SharedKvSpec, width: int) -> CompressorTensors:
        values = width * (1 if spec.indexer is None else 2)
        return CompressorTensors(
            kv=linear(f"{prefix}.wkv", values, self.hidden),
            gate=linear(f"{prefix}.wgate", values, self.hidden),
            position_bias=TensorRef(f"{prefix}.ape", (spec.ratio, values)),
            norm=TensorRef(f"{prefix}.norm.weight", (width,)),
        )

    def _head_hyper(self, prefix: str) -> HyperTensors | None:
        n = self.spec.hyper.n_streams if self.spec.hyper is not None else 0
        return self._hyper(prefix, n, 1)

    def _hyper(self, prefix: str, n_weights: int, n_scales: int) -> HyperTensors | None:
        if self.spec.hyper is None:
            return None
        return HyperTensors(
            weight=TensorRef(f"{prefix}_fn", (n_weights, self.spec.hyper.n_streams * self.hidden)),
            base=TensorRef(f"{prefix}_base", (n_weights,)),
            scale=TensorRef(f"{prefix}_scale", (n_scales,)),
        )


DEEPSEEK_V4 = Architecture("DeepseekV4ForCausalLM", _parse, DeepseekV4Names, _drafter)
