"""The routed experts' feed-forward: one small FFN for each expert's rows.

Shape suffixes: R rows (a token routed to one expert), E experts, D hidden size, F an expert's
hidden features, G = 2F (gate first, then up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expertmesh.kernels.activation import swiglu_torch
from expertmesh.kernels.linear import tiled_linear
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.ops import NativeOps, native_ops
from expertmesh.kernels.native.packing import LANES, interleave_gate_up

Compute = Callable[[Tensor, Sequence[int]], Tensor]


class GroupedFfn:
    """SwiGLU feed-forward layers of E experts, applied to rows sorted by expert.

    Takes the two tensors over: on CPUs their memory is put into the order in which the compiled
    kernels read it, so that an expert host never holds its slice twice. Do not use them afterwards.
    """

    def __init__(self, gate_up_EGD: Tensor, down_EDF: Tensor, mode: ComputeMode) -> None:
        self._n_experts = gate_up_EGD.shape[0]
        ops = native_ops(gate_up_EGD) if mode.native and self._n_experts else None
        self._compute = (
            _torch_compute(gate_up_EGD, down_EDF, mode)
            if ops is None
            else _native_compute(ops, gate_up_EGD, down_EDF)
        )

    def __call__(self, x_RD: Tensor, rows_per_expert: Sequence[int]) -> Tensor:
        """y [R, D]: the first `rows_per_expert[0]` rows through expert 0, and so on.

        Only the weights of experts with rows are read. Raises ValueError when the counts do not
        add up to R or are not one for each expert.
        """
        if len(rows_per_expert) != self._n_experts or sum(rows_per_expert) != x_RD.shape[0]:
            raise ValueError(
                f"rows_per_expert counts {sum(rows_per_expert)} rows of {len(rows_per_expert)} experts; "
                f"given are {x_RD.shape[0]} rows and {self._n_experts} experts"
            )
        return self._compute(x_RD, rows_per_expert)


def _native_compute(ops: NativeOps, gate_up_EGD: Tensor, down_EDF: Tensor) -> Compute:
    if down_EDF.shape[2] % LANES == 0:
        for gate_up_GD in gate_up_EGD:
            gate_up_GD.copy_(interleave_gate_up(gate_up_GD))
        gate_up = ops.pack_in_place(gate_up_EGD)
    else:
        gate_up = ops.pack([interleave_gate_up(gate_up_GD) for gate_up_GD in gate_up_EGD])
    down = ops.pack_in_place(down_EDF)

    def compute(x_RD: Tensor, rows_per_expert: Sequence[int]) -> Tensor:
        return ops.grouped_ffn(x_RD.contiguous(), gate_up, down, rows_per_expert)

    return compute


def _torch_compute(gate_up_EGD: Tensor, down_EDF: Tensor, mode: ComputeMode) -> Compute:
    def compute(x_RD: Tensor, rows_per_expert: Sequence[int]) -> Tensor:
        y_RD = torch.empty_like(x_RD)
        start = 0
        for expert, n_rows in enumerate(rows_per_expert):
            if n_rows == 0:
                continue
            rows_RD = x_RD[start : start + n_rows]
            h_RF = swiglu_torch(tiled_linear(rows_RD, gate_up_EGD[expert], None, mode))
            y_RD[start : start + n_rows] = tiled_linear(h_RF, down_EDF[expert], None, mode)
            start += n_rows
        return y_RD

    return compute
