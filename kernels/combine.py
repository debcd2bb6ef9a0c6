"""The weighted sum over a token's chosen experts.

Shape suffixes: T tokens, K experts a token, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expertmesh.kernels.native.ops import native_ops


def weighted_sum(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """Sums expert outputs in top-k order, fp32 [T, D].

    One addition after the other, in the order of K: the answer does not depend on which rank
    computed which expert, nor on the batch.
    """
    ops = native_ops(y_TKD)
    if ops is not None and y_TKD.is_contiguous():
        return ops.weighted_sum(y_TKD, weights_TK.to(torch.float32).contiguous())
    return weighted_sum_torch(y_TKD, weights_TK)


def weighted_sum_torch(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """`weighted_sum` on any device."""
    n_tokens, top_k, hidden = y_TKD.shape
    weights_TK = weights_TK.to(torch.float32)
    sum_TD = torch.zeros(n_tokens, hidden, dtype=torch.float32, device=y_TKD.device)
    for k in range(top_k):
        sum_TD.addcmul_(y_TKD[:, k].to(torch.float32), weights_TK[:, k : k + 1])
    return sum_TD
