"""References to a checkpoint's tensors, grouped as the parts of a model need them. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor in a checkpoint: its name and the shape that it must have."""

    name: str
    shape: tuple[int, ...]
    part: tuple[int, int] | None = None
    """(index, count): `shape` is that of one of `count` slices which are stored together, one after the
    other."""
    integer: bool = False
    """Whole numbers, not weights."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the whole tensor in the file."""
        return self.shape if self.part is None else (self.part[1], *self.shape)


@dataclass(frozen=True, slots=True)
class LinearTensors:
    """A projection's weight [out, in] and, where the model has one, its bias [out]."""

    weight: TensorRef
    bias: TensorRef | None = None


@dataclass(frozen=True, slots=True)
class NormTensors:
    """A layer norm with a bias."""

    weight: TensorRef
    bias: TensorRef


@dataclass(frozen=True, slots=True)
class SwigluTensors:
    """One gated network: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    gate: TensorRef
    up: TensorRef
    down: TensorRef


@dataclass(frozen=True, slots=True)
class PairedExpertTensors:
    """One expert stored [in, out], gate and up features in turns, with biases (gpt-oss)."""

    gate_up: TensorRef
    """[hidden, 2 * intermediate]"""
    gate_up_bias: TensorRef
    down: TensorRef
    """[intermediate, hidden]"""
    down_bias: TensorRef


ExpertTensors = SwigluTensors | PairedExpertTensors


@dataclass(frozen=True, slots=True)
class IndexerTensors:
    """A lightning indexer over the tokens' keys (DeepSeek-V3.2)."""

    q: LinearTensors
    """From the query latent."""
    k: LinearTensors
    k_norm: NormTensors
    weights: LinearTensors


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
    indexer: IndexerTensors | None = None


@dataclass(frozen=True, slots=True)
class GqaTensors:
    """Grouped-query attention."""

    q: LinearTensors
    k: LinearTensors
    v: LinearTensors
    o: LinearTensors
    q_norm: TensorRef | None
    k_norm: TensorRef | None
    sinks: TensorRef | None


@dataclass(frozen=True, slots=True)
class CompressorTensors:
    """What makes one row of several tokens."""

    kv: LinearTensors
    gate: LinearTensors
    position_bias: TensorRef
    """[ratio, values]"""
    norm: TensorRef


@dataclass(frozen=True, slots=True)
class RowIndexerTensors:
    """A lightning indexer over compressed rows (DeepSeek-V4)."""

    q: LinearTensors
    """From the query latent."""
    weights: LinearTensors
    compressor: CompressorTensors


@dataclass(frozen=True, slots=True)
class SharedKvTensors:
    """DeepSeek-V4's attention."""

    q_a: LinearTensors
    q_a_norm: TensorRef
    q_b: LinearTensors
    kv: LinearTensors
    kv_norm: TensorRef
    o_a: TensorRef
    """[groups * rank, features of a group's heads]"""
    o_b: LinearTensors
    sinks: TensorRef
    compressor: CompressorTensors | None = None
    indexer: RowIndexerTensors | None = None


AttentionTensors = MlaTensors | GqaTensors | SharedKvTensors


@dataclass(frozen=True, slots=True)
class GateTensors:
    """A router's weight [experts, hidden], its biases [experts], and its table [vocab, experts a token]."""

    weight: TensorRef
    correction_bias: TensorRef | None = None
    bias: TensorRef | None = None
    table: TensorRef | None = None


@dataclass(frozen=True, slots=True)
class MoeTensors:
    """A MoE layer without its routed experts."""

    gate: GateTensors
    shared: SwigluTensors | None


@dataclass(frozen=True, slots=True)
class HyperTensors:
    """What mixes the residual streams around one part of a layer, or in front of the head."""

    weight: TensorRef
    base: TensorRef
    scale: TensorRef


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One decoder layer without its routed experts."""

    attention_norm: TensorRef
    attention: AttentionTensors
    ffn_norm: TensorRef
    ffn: SwigluTensors | MoeTensors
    attention_hyper: HyperTensors | None = None
    ffn_hyper: HyperTensors | None = None


@dataclass(frozen=True, slots=True)
class DrafterTensors:
    """A multi-token-prediction module without its routed experts; embedding and head are the model's."""

    embedding_norm: TensorRef
    hidden_norm: TensorRef
    join: LinearTensors | None
    """Of the embedding and the hidden state, one behind the other; else each has a projection of its own,
    and they are added."""
    embedding: LinearTensors | None
    hidden: LinearTensors | None
    layer: LayerTensors
    head_hyper: HyperTensors | None
    final_norm: TensorRef


def tensor_refs(tensors: object) -> Iterator[TensorRef]:
    """Every reference in a group, in the order of its fields."""
    if isinstance(tensors, TensorRef):
        yield tensors
    elif dataclasses.is_dataclass(tensors):
        for field in dataclasses.fields(tensors):
            yield from tensor_refs(getattr(tensors, field.name))
