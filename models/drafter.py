"""A multi-token-prediction module: it drafts tokens that the model then verifies.

DeepSeek-V3 (arXiv:2412.19437, section 2.2): out of the model's hidden state at position i and token i + 1,
a further decoder layer at position i tells token i + 2. Embedding and head are the model's own. The hidden
state is the one behind the final norm, as in the training code of the demo checkpoint and in vLLM; that
for a further draft is what the layer leaves. DeepSeek-V4 keeps all residual streams, which
embedding and hidden states enter by projections of their own.

Shape suffixes: T tokens with padding, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.kernels.linear import Linear
from expertmesh.kernels.norm import rms_norm
from expertmesh.models.names import TensorNames
from expertmesh.models.parts.context import PartLoader
from expertmesh.models.parts.layer import DecoderLayer
from expertmesh.models.parts.residual import HyperHead
from expertmesh.models.parts.step import Step
from expertmesh.models.spec import DrafterSpec
from expertmesh.models.tensors import DrafterTensors


class ConcatenatedInput:
    """One projection of both (V3)."""

    def __init__(self, join: Linear) -> None:
        self._join = join

    def __call__(self, embedding_TD: Tensor, state: Tensor) -> Tensor:
        """[T, D]."""
        return self._join(torch.cat((embedding_TD, state), 1))


class AddedInput:
    """A projection of each, the embedding's added to every residual stream (V4)."""

    def __init__(self, embedding: Linear, hidden: Linear) -> None:
        self._embedding = embedding
        self._hidden = hidden

    def __call__(self, embedding_TD: Tensor, state: Tensor) -> Tensor:
        """[T, S, D]."""
        hidden = self._hidden(state.flatten(0, 1)).view_as(state)
        return hidden + self._embedding(embedding_TD).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Drafter:
    """The module without embedding and head."""

    embedding_norm_D: Tensor
    hidden_norm_D: Tensor
    input: ConcatenatedInput | AddedInput
    layer: DecoderLayer
    hyper_head: HyperHead | None
    final_norm_D: Tensor
    norm_eps: float

    @classmethod
    def load(cls, loader: PartLoader, names: TensorNames, spec: DrafterSpec) -> Drafter:
        """Reads everything but the routed experts."""
        tensors, model = names.drafter(spec), loader.spec
        n_moe_layers = len(model.moe_layers) - model.n_draft_moe_layers
        return cls(
            embedding_norm_D=loader.read(tensors.embedding_norm),
            hidden_norm_D=loader.read(tensors.hidden_norm),
            input=_load_input(loader, tensors),
            layer=DecoderLayer.load(loader, tensors.layer, spec.layer, n_moe_layers),
            hyper_head=None
            if model.hyper is None or tensors.head_hyper is None
            else HyperHead.load(loader, tensors.head_hyper, model.hyper),
            final_norm_D=loader.read(tensors.final_norm),
            norm_eps=model.norm_eps,
        )

    def __call__(self, state: Tensor, embedding_TD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """What the head takes, [T, D], and the state for a further draft, of the same shape as `state`."""
        embedding_TD = rms_norm(embedding_TD, self.embedding_norm_D, self.norm_eps)
        rows = state.reshape(-1, state.shape[-1])
        state = rms_norm(rows, self.hidden_norm_D, self.norm_eps).view_as(state)
        state = self.layer(self.input(embedding_TD, state), step)
        hidden_TD = state if self.hyper_head is None else self.hyper_head(state)
        final_TD = rms_norm(hidden_TD, self.final_norm_D, self.norm_eps)
        step.mark("draft norm")
        return final_TD, state


def _load_input(loader: PartLoader, tensors: DrafterTensors) -> ConcatenatedInput | AddedInput:
    if tensors.join is not None:
        return ConcatenatedInput(loader.linear(tensors.join))
    assert tensors.embedding is not None
    assert tensors.hidden is not None
    return AddedInput(loader.linear(tensors.embedding), loader.linear(tensors.hidden))
