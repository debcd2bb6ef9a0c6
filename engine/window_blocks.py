"""Blocks for what sequences keep of their last tokens only. No torch.

Blocks are taken when a step is scheduled and given back at its commit, once they lie wholly behind the
window: a step that is run again finds all that it read before. There are as many as the running sequences
can need at once, so that they never run out.
"""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh.engine.request import RequestKey


@dataclass(frozen=True, slots=True)
class WindowTable:
    """The blocks of one sequence in one window, from the one that holds token `first_token` on."""

    first_token: int
    blocks: tuple[int, ...]


class WindowBlocks:
    """The free lists of all windows of one router's cache, and who holds what."""

    def __init__(
        self,
        windows: tuple[int, ...],
        block_tokens: int,
        *,
        max_running: int,
        max_step_tokens: int,
        max_drafts: int = 0,
    ) -> None:
        self.block_tokens = block_tokens
        self._windows = windows
        # Between steps a sequence holds window - 1 tokens, which may begin and end within blocks; a step
        # adds its own tokens. Drafts lie behind both: those that a step verified and rejected, and those
        # that it made.
        self.n_blocks = tuple(
            max_running * ((window - 1 + 2 * max_drafts) // block_tokens + 3)
            + max_step_tokens // block_tokens
            for window in windows
        )
        """Of each window."""
        self._free = [list(range(n - 1, -1, -1)) for n in self.n_blocks]
        self._tables: dict[RequestKey, tuple[WindowTable, ...]] = {}

    @property
    def n_used(self) -> int:
        """Blocks that sequences hold."""
        return sum(self.n_blocks) - sum(map(len, self._free))

    def cover(self, key: RequestKey, end: int) -> tuple[WindowTable, ...]:
        """The sequence's tables, with blocks for its tokens before `end`."""
        tables = self._tables.get(key) or tuple(WindowTable(0, ()) for _ in self._windows)
        grown = []
        for table, free in zip(tables, self._free, strict=True):
            n_missing = -(-(end - table.first_token) // self.block_tokens) - len(table.blocks)
            taken = tuple(free.pop() for _ in range(n_missing))
            grown.append(WindowTable(table.first_token, table.blocks + taken))
        if grown:
            self._tables[key] = tuple(grown)
        return tuple(grown)

    def trim(self, key: RequestKey, n_computed: int) -> None:
        """Gives back what the sequence's next token, number `n_computed`, does not see."""
        kept = []
        for window, table, free in zip(self._windows, self._tables.get(key, ()), self._free, strict=False):
            first_seen = max(0, n_computed - window + 1)
            n_behind = min(len(table.blocks), (first_seen - table.first_token) // self.block_tokens)
            free.extend(reversed(table.blocks[:n_behind]))
            first_token = table.first_token + n_behind * self.block_tokens
            kept.append(WindowTable(first_token, table.blocks[n_behind:]))
        if kept:
            self._tables[key] = tuple(kept)

    def release(self, key: RequestKey) -> None:
        """Gives back all that a sequence holds, if anything."""
        for table, free in zip(self._tables.pop(key, ()), self._free, strict=False):
            free.extend(reversed(table.blocks))
