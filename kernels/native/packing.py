"""The order in which the C kernels read weights.

Shape suffixes: N out-features, K in-features.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 16
LINE_BYTES = 64
_PAGE_OFFSET_BYTES = 128
"""Products with weights that begin at a page's border took 4 % longer: rows of x fall into the same cache
sets."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Weights [N, K], or a stack of them, in the order in which the kernels read them."""

    storage: Tensor
    n: int
    k: int
    is_bf16: bool


@dataclass(frozen=True, slots=True)
class PackedExpert:
    """One expert's SwiGLU layers: panels of gate and up in turns, then those of down."""

    storage: Tensor
    hidden: int
    n_features: int
    is_bf16: bool

    @property
    def gate_up_bytes(self) -> int:
        """Of gate and up together; down begins behind them."""
        return 2 * packed_bytes(self.n_features, self.hidden, self.is_bf16)


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """Where the layers of some experts of one shape lie. The experts must outlive it."""

    gate_up: ctypes.Array[ctypes.c_void_p]
    down: ctypes.Array[ctypes.c_void_p]
    hidden: int
    n_features: int
    is_bf16: bool

    @classmethod
    def of(cls, experts: Sequence[PackedExpert]) -> ExpertTable:
        """The table of one expert at least; an expert may stand in it twice."""
        first = experts[0]
        starts = [expert.storage.data_ptr() for expert in experts]
        addresses = ctypes.c_void_p * len(experts)
        return cls(
            addresses(*starts),
            addresses(*(start + first.gate_up_bytes for start in starts)),
            first.hidden,
            first.n_features,
            first.is_bf16,
        )


def packed_bytes(n: int, k: int, is_bf16: bool) -> int:
    """Bytes of a packed [N, K]: N is padded to 16, for bf16 K to 32."""
    lines = -(-k // 32) * 16 if is_bf16 else k
    return -(-n // LANES) * lines * LINE_BYTES


def aligned_zeros(n_bytes: int) -> Tensor:
    """Zeroed bytes that start on a line."""
    storage = torch.zeros(n_bytes + LINE_BYTES, dtype=torch.uint8)
    offset = -storage.data_ptr() % LINE_BYTES
    return storage[offset : offset + n_bytes]


def page_zeros(n_bytes: int) -> Tensor:
    """Zeroed bytes in pages of their own, which the system gets back as soon as the tensor is gone.

    The C library's heap keeps freed blocks of up to 32 MiB for later.
    """
    pages = mmap.mmap(-1, n_bytes + _PAGE_OFFSET_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)[_PAGE_OFFSET_BYTES:]
