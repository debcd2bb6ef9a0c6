"""The routed experts that one process holds: the slots of every MoE layer.

Shape suffixes: R rows (a token routed to one expert), D hidden size, S slots of a layer, F an
expert's hidden features, G = 2F (gate, then up).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expertmesh.kernels.grouped_ffn import GroupedFfn
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.loader import Progress, TensorLoader
from expertmesh.models.names import SwigluTensors, expert_tensors, swiglu_refs
from expertmesh.models.spec import LayerSpec, ModelSpec, MoeSpec


class ExpertBank:
    """Slots of routed experts, layer by layer. A slot holds one logical expert."""

    def __init__(self, slots: tuple[tuple[int, ...], ...], layers: list[GroupedFfn | None]) -> None:
        self._slots = slots
        self._layers = layers

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        slots: Sequence[Sequence[int]],
        *,
        mode: ComputeMode,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None = None,
    ) -> ExpertBank:
        """Reads the experts of the slots, and nothing else.

        Args:
            slots: for each MoE layer the logical expert of every slot; counts may differ, or be 0.
            progress: called with (bytes read, bytes in all) behind every tensor.

        Raises:
            ValueError: the slots do not fit the model.
            CheckpointError: a file cannot be read any more.
        """
        _check_slots(spec, slots)
        tensors = [
            [expert_tensors(checkpoint.names, spec, layer, expert) for expert in experts]
            for layer, experts in zip(spec.moe_layers, slots, strict=True)
        ]
        total_bytes = sum(
            checkpoint.stored(ref).n_bytes
            for layer in tensors
            for slot in layer
            for ref in swiglu_refs(slot)
        )
        loader = TensorLoader(
            checkpoint, dtype=dtype, device=device, total_bytes=total_bytes, progress=progress
        )
        return cls(tuple(map(tuple, slots)), [_load_layer(loader, layer, mode) for layer in tensors])

    @property
    def slots(self) -> tuple[tuple[int, ...], ...]:
        """For each MoE layer the logical expert of every slot."""
        return self._slots

    def forward(self, moe_layer: int, x_RD: Tensor, rows_per_slot: Sequence[int]) -> Tensor:
        """Outputs [R, D] for rows sorted by slot, `rows_per_slot[s]` of them for slot s.

        Raises:
            ValueError: the counts do not fit the rows or the slots.
        """
        layer = self._layers[moe_layer]
        if layer is not None:
            return layer(x_RD, rows_per_slot)
        if x_RD.shape[0] or len(rows_per_slot):
            raise ValueError(
                f"{x_RD.shape[0]} rows came for MoE layer {moe_layer}, which has no slots here"
            )
        return torch.empty_like(x_RD)


def all_experts(spec: ModelSpec) -> tuple[tuple[int, ...], ...]:
    """The slots of a process that holds every expert: slot e is expert e."""
    return tuple(tuple(range(spec.n_experts)) for _ in spec.moe_layers)


def expert_bytes(spec: ModelSpec, layer: LayerSpec, dtype: torch.dtype) -> int:
    """Bytes of weights that one routed expert of a MoE layer takes."""
    if not isinstance(layer.ffn, MoeSpec):
        raise TypeError(f"layer {layer.index} of {spec.architecture} has no routed experts")
    return 3 * spec.hidden_size * layer.ffn.intermediate * dtype.itemsize


def _check_slots(spec: ModelSpec, slots: Sequence[Sequence[int]]) -> None:
    if len(slots) != len(spec.moe_layers):
        raise ValueError(f"slots for {len(slots)} MoE layers, but the model has {len(spec.moe_layers)}")
    for moe_layer, experts in enumerate(slots):
        for expert in experts:
            if not 0 <= expert < spec.n_experts:
                raise ValueError(
                    f"MoE layer {moe_layer} has experts 0 to {spec.n_experts - 1}, not {expert}"
                )


def _load_layer(
    loader: TensorLoader, experts: Sequence[SwigluTensors], mode: ComputeMode
) -> GroupedFfn | None:
    """Every tensor goes straight to its place in the stacks: no copy of the slice is ever held."""
    if not experts:
        return None
    n_features, hidden = experts[0].gate.shape
    gate_up_SGD = loader.empty(len(experts), 2 * n_features, hidden)
    down_SDF = loader.empty(len(experts), hidden, n_features)
    for slot, tensors in enumerate(experts):
        loader.read_into(tensors.gate, gate_up_SGD[slot, :n_features])
        loader.read_into(tensors.up, gate_up_SGD[slot, n_features:])
        loader.read_into(tensors.down, down_SDF[slot])
    return GroupedFfn(gate_up_SGD, down_SDF, mode)
