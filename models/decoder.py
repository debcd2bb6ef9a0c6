"""The router's part of a model: everything but the routed experts.

Shape suffixes: T tokens with padding, D hidden size, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expertmesh.kernels.linear import Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.files import background_reader
from expertmesh.kernels.norm import rms_norm
from expertmesh.models.cache import CacheSize, PagedCache
from expertmesh.models.checkpoint import Checkpoint, read_file
from expertmesh.models.drafter import Drafter
from expertmesh.models.interface import ForwardBatch, MoeExchange
from expertmesh.models.loader import Progress, TensorLoader
from expertmesh.models.names import TensorNames, router_tensors
from expertmesh.models.parts.context import PartLoader
from expertmesh.models.parts.layer import DecoderLayer
from expertmesh.models.parts.residual import HyperHead
from expertmesh.models.parts.step import Mark, Step
from expertmesh.models.spec import ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a pass over tokens leaves behind."""

    final_TD: Tensor
    """Behind the final norm, as the head takes it."""
    state: Tensor
    """As the drafter takes it: [T, D], or all residual streams [T, S, D]."""


class Decoder:
    """Embedding, layers, final norm and head; the experts are reached through an exchange."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        embedding_VD: Tensor,
        layers: list[DecoderLayer],
        hyper_head: HyperHead | None,
        final_norm_D: Tensor,
        head: Linear,
        drafter: Drafter | None = None,
    ) -> None:
        self.spec = spec
        self._embedding_VD = embedding_VD
        self._layers = layers
        self._hyper_head = hyper_head
        self._final_norm_D = final_norm_D
        self._head = head
        self._drafter = drafter

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
        background: bool = False,
    ) -> Decoder:
        """Reads everything but the routed experts.

        Args:
            dtype: of weights, activations and cache; norms, gate and softmax compute in fp32.
            max_tokens: positions that can occur (prompt and answer together).
            progress: called with (bytes read, bytes in all) behind every tensor. What it raises ends the
                loading.
            background: another decoder computes meanwhile and must not be slowed down.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        names = checkpoint.names
        total_bytes = sum(map(checkpoint.stored_bytes, router_tensors(names, spec)))
        read = background_reader() if background else None
        tensors = TensorLoader(
            checkpoint,
            dtype=dtype,
            device=device,
            total_bytes=total_bytes,
            progress=progress,
            read=read or read_file,
        )
        loader = PartLoader(tensors, spec, mode, max_tokens)
        embedding_VD = loader.read(names.embedding())
        head_hyper = names.head_hyper()
        return cls(
            spec,
            embedding_VD=embedding_VD,
            layers=list(_load_layers(loader, names)),
            hyper_head=None
            if spec.hyper is None or head_hyper is None
            else HyperHead.load(loader, head_hyper, spec.hyper),
            final_norm_D=loader.read(names.final_norm()),
            head=Linear(embedding_VD if spec.tie_embeddings else loader.read(names.head()), None, mode),
            drafter=None if spec.drafter is None else Drafter.load(loader, names, spec.drafter),
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
        return self.run(Step(batch, cache, exchange, mark)).final_TD

    def run(self, step: Step) -> Hidden:
        """The same, with what drafts are made of."""
        stream = F.embedding(step.batch.token_ids_T, self._embedding_VD)
        if self.spec.hyper is not None:
            stream = stream.unsqueeze(1).expand(-1, self.spec.hyper.n_streams, -1).contiguous()
        step.mark("embed")
        for layer in self._layers:
            stream = layer(stream, step)
        hidden_TD = stream if self._hyper_head is None else self._hyper_head(stream)
        hidden_TD = rms_norm(hidden_TD, self._final_norm_D, self.spec.norm_eps)
        step.mark("norm")
        return Hidden(hidden_TD, hidden_TD if self._hyper_head is None else stream)

    def draft(self, state: Tensor, step: Step) -> Hidden:
        """Hidden states that tell the token after the next.

        `state` is that of the tokens in front of the batch's: out of `run` at first, then out of `draft`.
        Fills the drafter's cache entries at the batch's positions, and calls the exchange for its layer.
        """
        assert self._drafter is not None, "the model was opened without its drafter"
        embedding_TD = F.embedding(step.batch.token_ids_T, self._embedding_VD)
        return Hidden(*self._drafter(state, embedding_TD, step))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """fp32 logits [N, V] of hidden states out of `forward`."""
        return self._head(hidden_ND, torch.float32)

    def new_cache(self, size: CacheSize) -> PagedCache:
        """A zeroed paged cache for this model."""
        return PagedCache(self.spec.cache, size, dtype=self.dtype, device=self._embedding_VD.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self._embedding_VD.dtype


def _load_layers(loader: PartLoader, names: TensorNames) -> Iterator[DecoderLayer]:
    n_moe_layers = 0
    for layer in loader.spec.layers:
        yield DecoderLayer.load(loader, names.layer(layer), layer, n_moe_layers)
        n_moe_layers += isinstance(layer.ffn, MoeSpec)
