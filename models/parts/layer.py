"""One decoder layer: attention and a feed-forward part.

Shape suffixes: T tokens with padding, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from expertmesh.kernels.norm import rms_norm
from expertmesh.models.parts.build import Part, load_attention, load_ffn, load_residual
from expertmesh.models.parts.context import PartLoader
from expertmesh.models.parts.residual import Residual
from expertmesh.models.parts.step import Step
from expertmesh.models.spec import LayerSpec
from expertmesh.models.tensors import LayerTensors


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Two parts, each behind a norm and beside a residual."""

    attention_norm_D: Tensor
    attention: Part
    attention_residual: Residual
    ffn_norm_D: Tensor
    ffn: Part
    ffn_residual: Residual
    norm_eps: float

    @classmethod
    def load(
        cls, loader: PartLoader, tensors: LayerTensors, layer: LayerSpec, moe_layer: int
    ) -> DecoderLayer:
        """Reads a layer; `moe_layer` counts the MoE layers before it."""
        spec = loader.spec
        return cls(
            attention_norm_D=loader.read(tensors.attention_norm),
            attention=load_attention(loader, tensors, layer),
            attention_residual=load_residual(loader, tensors.attention_hyper, spec.hyper),
            ffn_norm_D=loader.read(tensors.ffn_norm),
            ffn=load_ffn(loader, tensors, layer, moe_layer),
            ffn_residual=load_residual(loader, tensors.ffn_hyper, spec.hyper),
            norm_eps=spec.norm_eps,
        )

    def __call__(self, stream: Tensor, step: Step) -> Tensor:
        """The residual stream behind this layer."""

        def attention(x_TD: Tensor) -> Tensor:
            return self.attention(rms_norm(x_TD, self.attention_norm_D, self.norm_eps), step)

        def ffn(x_TD: Tensor) -> Tensor:
            return self.ffn(rms_norm(x_TD, self.ffn_norm_D, self.norm_eps), step)

        stream = self.attention_residual(stream, attention)
        step.mark("attention")
        return self.ffn_residual(stream, ffn)
