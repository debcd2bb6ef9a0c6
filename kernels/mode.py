"""How products are computed: fast, or in tiles of one fixed size so that rows are independent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComputeMode:
    """Decided once a process, passed to every layer.

    With `tile_rows` set (deterministic mode) every product runs on exactly that many rows, padded
    with zeros: a row's result then does not depend on its neighbours or on the batch size. Attention
    splits its keys at multiples of `tile_keys`, whatever the batch.
    """

    tile_rows: int | None = None
    tile_keys: int = 64
    native: bool = True
    """Use the compiled CPU kernels where the machine can; torch alone otherwise. The compiled ones
    compute a row from that row alone and need no tiles."""

    @property
    def deterministic(self) -> bool:
        """Whether a token's result depends only on the tokens before it."""
        return self.tile_rows is not None
