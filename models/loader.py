"""Tensors out of a checkpoint, one by one, straight into their places."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.names import TensorRef

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) behind every tensor."""

_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class TensorLoader:
    """Reads what one process holds, in one dtype, to one device.

    Beyond the tensors themselves it takes the memory of at most one tensor as stored, and none where
    dtype and device need no conversion.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        total_bytes: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._checkpoint = checkpoint
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for tensors, in the loader's dtype unless told, on its device."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def read(self, ref: TensorRef, dtype: torch.dtype | None = None) -> Tensor:
        """One whole tensor, in the loader's dtype unless told."""
        out = self.empty(*ref.shape, dtype=dtype)
        self.read_into(ref, out)
        return out

    def read_into(self, ref: TensorRef, out: Tensor) -> None:
        """One tensor into a tensor (often a part of a larger one) of its shape."""
        if tuple(out.shape) != ref.shape:
            raise ValueError(f"{ref.name} has shape {ref.shape}, its place {tuple(out.shape)}")
        stored = self._checkpoint.stored(ref)
        stored_dtype = _TORCH_DTYPES[stored.dtype]
        if out.device.type == "cpu" and out.dtype == stored_dtype and out.is_contiguous():
            self._read_raw(ref, out)
        else:
            staging = torch.empty(ref.shape, dtype=stored_dtype)
            self._read_raw(ref, staging)
            out.copy_(staging)
        self._done_bytes += stored.n_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _read_raw(self, ref: TensorRef, out: Tensor) -> None:
        # numpy knows no bfloat16; the bytes are the same.
        self._checkpoint.read_bytes(ref, out.view(torch.uint8).numpy().data)
