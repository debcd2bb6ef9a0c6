"""The weighted sum over a token's chosen experts.

Shape suffixes: T tokens, K experts a token, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_sum(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """Sums expert outputs in top-k order, fp32 [T, D].

    One addition after the other, in the order of K: the answer does not depend on which rank
    computed which expert, nor on the batch.
    """
    n_tokens, top_k, hidden = y_TKD.shape
    weights_TK = weights_TK.to(torch.float32)
    sum_TD = torch.zeros(n_tokens, hidden, dtype=torch.float32, device=y_TKD.device)
    for k in range(top_k):
        sum_TD.addcmul_(y_TKD[:, k].to(torch.float32), weights_TK[:, k : k + 1])
    return sum_TD
