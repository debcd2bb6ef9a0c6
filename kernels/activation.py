"""The gated activation of feed-forward layers (arXiv:2002.05202).

Shape suffixes: T tokens, F hidden features of the layer, G = 2F (gate first, then up).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def swiglu(gate_up_TG: Tensor) -> Tensor:
    """silu(gate) * up, [T, F] of the input's dtype; fp32 inside, one cast at the end."""
    gate_TF, up_TF = gate_up_TG.chunk(2, -1)
    return (F.silu(gate_TF.float()) * up_TF.float()).to(gate_up_TG.dtype)
