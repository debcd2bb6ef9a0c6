"""The routed experts' feed-forward: one small FFN for each expert's rows.

Shape suffixes: R rows (a token routed to one expert), E experts, D hidden size, F an expert's
hidden features, G = 2F (gate first, then up).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expertmesh.kernels.activation import swiglu
from expertmesh.kernels.linear import tiled_linear
from expertmesh.kernels.mode import ComputeMode


class GroupedFfn:
    """SwiGLU feed-forward layers of E experts, applied to rows sorted by expert."""

    def __init__(self, gate_up_EGD: Tensor, down_EDF: Tensor, mode: ComputeMode) -> None:
        self._gate_up_EGD = gate_up_EGD
        self._down_EDF = down_EDF
        self._mode = mode

    def __call__(self, x_RD: Tensor, rows_per_expert: Sequence[int]) -> Tensor:
        """y [R, D]: the first `rows_per_expert[0]` rows through expert 0, and so on.

        Only the weights of experts with rows are read. Raises ValueError when the counts do not
        add up to R or are not one for each expert.
        """
        if len(rows_per_expert) != self._gate_up_EGD.shape[0] or sum(rows_per_expert) != x_RD.shape[0]:
            raise ValueError(
                f"rows_per_expert counts {sum(rows_per_expert)} rows of {len(rows_per_expert)} experts; "
                f"given are {x_RD.shape[0]} rows and {self._gate_up_EGD.shape[0]} experts"
            )
        y_RD = torch.empty_like(x_RD)
        start = 0
        for expert, n_rows in enumerate(rows_per_expert):
            if n_rows == 0:
                continue
            rows_RD = x_RD[start : start + n_rows]
            h_RF = swiglu(tiled_linear(rows_RD, self._gate_up_EGD[expert], None, self._mode))
            y_RD[start : start + n_rows] = tiled_linear(h_RF, self._down_EDF[expert], None, self._mode)
            start += n_rows
        return y_RD
