"""Hands out the blocks of the paged cache: which are free, which are taken. No torch."""

from __future__ import annotations


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free; the scheduler has to preempt first."""


class BlockOwnershipError(RuntimeError):
    """A block was given back that nobody holds."""


class BlockManager:
    """The free list of one router's paged cache.

    The order is fixed by the history of calls: blocks come in rising order at first, and the last
    ones given back are the first handed out again.
    """

    def __init__(self, n_blocks: int, block_tokens: int) -> None:
        if n_blocks < 1 or block_tokens < 1:
            raise ValueError(
                f"a cache of {n_blocks} blocks of {block_tokens} tokens holds nothing; "
                "raise engine.kv_cache_tokens"
            )
        self.n_blocks = n_blocks
        self.block_tokens = block_tokens
        self._free = list(range(n_blocks - 1, -1, -1))
        self._taken = bytearray(n_blocks)

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def n_used(self) -> int:
        """Blocks that sequences hold."""
        return self.n_blocks - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.n_blocks * self.block_tokens

    def blocks_for(self, n_tokens: int) -> int:
        """Blocks that `n_tokens` tokens fill, the last perhaps in part."""
        return -(-n_tokens // self.block_tokens)

    def grow(self, table: tuple[int, ...], n_tokens: int) -> tuple[int, ...]:
        """`table` with as many blocks appended as `n_tokens` tokens need; itself if it has enough.

        Raises OutOfBlocksError, and takes nothing, when they are not free.
        """
        missing = -(-n_tokens // self.block_tokens) - len(table)
        if missing <= 0:
            return table
        if missing > len(self._free):
            raise OutOfBlocksError(
                f"{n_tokens} tokens need {missing} more cache blocks, "
                f"and {len(self._free)} of {self.n_blocks} are free"
            )
        taken = tuple(self._free.pop() for _ in range(missing))
        for block in taken:
            self._taken[block] = 1
        return table + taken

    def free(self, table: tuple[int, ...]) -> None:
        """Takes a sequence's blocks back. Raises BlockOwnershipError for one that is not handed out."""
        for block in table:
            if not 0 <= block < self.n_blocks or not self._taken[block]:
                raise BlockOwnershipError(
                    f"cache block {block} was given back but is not handed out; "
                    "a sequence's table is freed once, by the scheduler alone"
                )
            self._taken[block] = 0
        self._free.extend(reversed(table))
