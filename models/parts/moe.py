"""A Mixture-of-Experts layer without its routed experts: gate, shared expert, dispatch and combine.

Shape suffixes: T tokens with padding, N tokens without, D hidden size, E experts, K experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expertmesh.kernels.gate import select_experts
from expertmesh.kernels.linear import Linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.loader import TensorLoader
from expertmesh.models.names import GateTensors
from expertmesh.models.parts.dense import SwigluNetwork
from expertmesh.models.parts.step import Step
from expertmesh.models.spec import GateSpec


class Gate:
    """Scores in fp32, whatever the model's dtype, and the choice of experts."""

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None, spec: GateSpec, mode: ComputeMode) -> None:
        self._scores = Linear(weight_ED, None, mode)
        self._bias_E = bias_E
        self._spec = spec

    @classmethod
    def load(cls, loader: TensorLoader, tensors: GateTensors, spec: GateSpec, mode: ComputeMode) -> Gate:
        """Reads the gate's tensors as fp32."""
        bias = tensors.correction_bias
        return cls(
            loader.read(tensors.weight, torch.float32),
            None if bias is None else loader.read(bias, torch.float32),
            spec,
            mode,
        )

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts' weights (fp32 [T, K]) and ids (int64 [T, K])."""
        spec = self._spec
        return select_experts(
            self._scores(x_TD.float()),
            self._bias_E,
            scoring=spec.scoring,
            selection=spec.selection,
            top_k=spec.top_k,
            n_groups=spec.n_groups,
            top_k_groups=spec.top_k_groups,
            renormalise=spec.renormalise,
            scale=spec.scale,
        )


class MoeFfn:
    """A MoE layer's feed-forward part; the routed experts are reached through the step's exchange."""

    def __init__(self, moe_layer: int, gate: Gate, shared: SwigluNetwork | None) -> None:
        self._moe_layer = moe_layer
        self._gate = gate
        self._shared = shared

    def __call__(self, x_TD: Tensor, step: Step) -> Tensor:
        """What the layer adds to the residual stream, [T, D]: summed in fp32, cast once."""
        n_tokens = step.batch.n_tokens
        weights_TK, ids_TK = self._gate(x_TD)
        step.mark("gate")
        handle = step.exchange.dispatch(self._moe_layer, x_TD[:n_tokens], ids_TK[:n_tokens])
        step.mark("dispatch")
        if self._shared is None:
            sum_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        else:
            # Computed while the rows travel.
            sum_TD = self._shared(x_TD, torch.float32)
            step.mark("shared")
        sum_TD[:n_tokens] += step.exchange.combine(handle, weights_TK[:n_tokens])
        y_TD = sum_TD.to(x_TD.dtype)
        step.mark("combine")
        return y_TD
