"""The router's part of a model: everything but the routed experts.

Shape suffixes: T tokens with padding, D hidden size, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from expertmesh.kernels.linear import Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.norm import rms_norm
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.interface import ForwardBatch, MoeExchange, PagedCache
from expertmesh.models.loader import Progress, TensorLoader
from expertmesh.models.names import TensorNames, router_tensors
from expertmesh.models.parts.dense import DenseFfn, SwigluNetwork
from expertmesh.models.parts.mla import LatentAttention
from expertmesh.models.parts.moe import Gate, MoeFfn
from expertmesh.models.parts.rope import RopeTable
from expertmesh.models.parts.step import Mark, Step
from expertmesh.models.spec import DenseSpec, LayerSpec, ModelSpec, MoeSpec


class Part(Protocol):
    """Attention or the feed-forward part of a layer: x [T, D] to what it adds to the residual stream."""

    def __call__(self, x_TD: Tensor, step: Step) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Two parts, each behind a norm and beside a residual."""

    attention_norm_D: Tensor
    attention: Part
    ffn_norm_D: Tensor
    ffn: Part
    norm_eps: float

    def __call__(self, hidden_TD: Tensor, step: Step) -> Tensor:
        """The residual stream behind this layer."""
        normed_TD = rms_norm(hidden_TD, self.attention_norm_D, self.norm_eps)
        hidden_TD = hidden_TD + self.attention(normed_TD, step)
        step.mark("attention")
        return hidden_TD + self.ffn(rms_norm(hidden_TD, self.ffn_norm_D, self.norm_eps), step)


class Decoder:
    """Embedding, layers, final norm and head; the experts are reached through an exchange."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        embedding_VD: Tensor,
        layers: list[DecoderLayer],
        rope: RopeTable,
        final_norm_D: Tensor,
        head: Linear,
    ) -> None:
        self.spec = spec
        self._embedding_VD = embedding_VD
        self._layers = layers
        self._rope = rope
        self._final_norm_D = final_norm_D
        self._head = head

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        *,
        mode: ComputeMode,
        dtype: torch.dtype,
        device: torch.device,
        max_tokens: int,
        progress: Progress | None = None,
    ) -> Decoder:
        """Reads everything but the routed experts.

        Args:
            dtype: of weights, activations and cache; norms, gate and softmax compute in fp32.
            max_tokens: positions that can occur (prompt and answer together).
            progress: called with (bytes read, bytes in all) behind every tensor.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        names = checkpoint.names
        total_bytes = sum(checkpoint.stored(ref).n_bytes for ref in router_tensors(names, spec))
        loader = TensorLoader(
            checkpoint, dtype=dtype, device=device, total_bytes=total_bytes, progress=progress
        )
        embedding_VD = loader.read(names.embedding())
        return cls(
            spec,
            embedding_VD=embedding_VD,
            layers=list(_load_layers(loader, names, spec, mode)),
            rope=RopeTable(spec.rope, max_tokens=max_tokens, device=device),
            final_norm_D=loader.read(names.final_norm()),
            head=Linear(embedding_VD if spec.tie_embeddings else loader.read(names.head()), None, mode),
        )

    def forward(
        self,
        batch: ForwardBatch,
        cache: PagedCache,
        exchange: MoeExchange,
        mark: Mark = lambda part: None,
    ) -> Tensor:
        """The batch's hidden states behind the final norm, [T, D]; fills the tokens' cache entries.

        Every MoE layer calls the exchange once, in order. `mark` is told the parts "embed",
        "attention", "dense", "gate", "dispatch", "shared", "combine" and "norm" as they end.
        """
        hidden_TD = F.embedding(batch.token_ids_T, self._embedding_VD)
        step = Step(batch, cache, exchange, mark, *self._rope.at(batch.positions_T))
        mark("embed")
        for layer in self._layers:
            hidden_TD = layer(hidden_TD, step)
        hidden_TD = rms_norm(hidden_TD, self._final_norm_D, self.spec.norm_eps)
        mark("norm")
        return hidden_TD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """fp32 logits [N, V] of hidden states out of `forward`."""
        return self._head(hidden_ND, torch.float32)

    def new_cache(self, n_blocks: int, block_tokens: int) -> PagedCache:
        """A zeroed paged cache for this model."""
        return PagedCache(
            n_layers=len(self._layers),
            n_blocks=n_blocks,
            block_tokens=block_tokens,
            dim=cache_dim(self.spec),
            dtype=self._embedding_VD.dtype,
            device=self._embedding_VD.device,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self._embedding_VD.dtype

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of cache that one token takes over all layers."""
        return cache_bytes_per_token(self.spec, self._embedding_VD.dtype)


def cache_dim(spec: ModelSpec) -> int:
    """Values that a token keeps in a layer's cache."""
    return spec.layers[0].attention.cache_dim


def cache_bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of cache that one token takes over all layers."""
    return len(spec.layers) * cache_dim(spec) * dtype.itemsize


def _load_layers(
    loader: TensorLoader, names: TensorNames, spec: ModelSpec, mode: ComputeMode
) -> Iterator[DecoderLayer]:
    n_moe_layers = 0
    for layer in spec.layers:
        attention_norm_D = loader.read(names.attention_norm(layer))
        attention = LatentAttention.load(
            loader,
            names.mla(layer, layer.attention),
            layer.attention,
            mode,
            layer=layer.index,
            interleaved_rope=spec.rope.interleaved,
        )
        ffn_norm_D = loader.read(names.ffn_norm(layer))
        ffn: Part
        if isinstance(layer.ffn, DenseSpec):
            ffn = DenseFfn(SwigluNetwork.load(loader, names.dense(layer, layer.ffn), mode))
        else:
            ffn = _load_moe(loader, names, layer, layer.ffn, mode, n_moe_layers)
            n_moe_layers += 1
        yield DecoderLayer(attention_norm_D, attention, ffn_norm_D, ffn, spec.norm_eps)


def _load_moe(
    loader: TensorLoader,
    names: TensorNames,
    layer: LayerSpec,
    spec: MoeSpec,
    mode: ComputeMode,
    moe_layer: int,
) -> MoeFfn:
    gate = Gate.load(loader, names.gate(layer, spec), spec.gate, mode)
    shared = None
    if spec.shared_intermediate:
        shared = SwigluNetwork.load(loader, names.shared(layer, spec), mode)
    return MoeFfn(moe_layer, gate, shared)
