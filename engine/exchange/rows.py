"""How a token travels to an expert host: its hidden state, then its physical expert ids.

Shape suffixes: T tokens, K experts a token, D hidden size, B bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIGN_BYTES = 16


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The bytes of one dispatched row: D values of `dtype`, K int32 ids, padding to 16 bytes."""

    hidden: int
    top_k: int
    dtype: torch.dtype

    @property
    def value_bytes(self) -> int:
        """Bytes of the hidden state, and of one row on its way back."""
        return self.hidden * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on its way out."""
        used = _aligned(self.value_bytes) + 4 * self.top_k
        return _aligned(used)

    def pack(self, x_TD: Tensor, physical_TK: Tensor) -> Tensor:
        """Rows as uint8 [T, B]."""
        rows_TB = torch.empty(len(x_TD), self.row_bytes, dtype=torch.uint8, device=x_TD.device)
        self._values(rows_TB).copy_(x_TD)
        self._ids(rows_TB).copy_(physical_TK)
        return rows_TB

    def unpack(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """The opposite of `pack`, from a flat uint8 buffer: views x_TD and physical_TK (int32)."""
        rows_TB = rows_B.view(-1, self.row_bytes)
        return self._values(rows_TB), self._ids(rows_TB)

    def _values(self, rows_TB: Tensor) -> Tensor:
        return rows_TB[:, : self.value_bytes].view(self.dtype)

    def _ids(self, rows_TB: Tensor) -> Tensor:
        start = _aligned(self.value_bytes)
        return rows_TB[:, start : start + 4 * self.top_k].view(torch.int32)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES
