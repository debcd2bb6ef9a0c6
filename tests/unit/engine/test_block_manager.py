"""The free list of the paged cache."""

from __future__ import annotations

import pytest

from expertmesh.engine.block_manager import BlockManager, BlockOwnershipError, OutOfBlocksError


def test_a_table_grows_only_when_its_last_block_is_full() -> None:
    blocks = BlockManager(n_blocks=8, block_tokens=4)
    table = blocks.grow((), 1)
    assert table == (0,)
    assert blocks.grow(table, 4) is table
    assert blocks.grow(table, 5) == (0, 1)
    assert (blocks.n_free, blocks.n_used) == (6, 2)


def test_the_order_is_fixed_by_the_history() -> None:
    def history() -> list[tuple[int, ...]]:
        blocks = BlockManager(n_blocks=6, block_tokens=2)
        first, second = blocks.grow((), 4), blocks.grow((), 3)
        blocks.free(first)
        third = blocks.grow((), 5)
        blocks.free(second)
        return [first, second, third, blocks.grow((), 2)]

    assert history() == history() == [(0, 1), (2, 3), (0, 1, 4), (2,)]


def test_too_many_blocks_are_refused_and_none_is_taken() -> None:
    blocks = BlockManager(n_blocks=3, block_tokens=4)
    table = blocks.grow((), 5)
    with pytest.raises(OutOfBlocksError, match="2 more cache blocks, and 1 of 3 are free"):
        blocks.grow(table, 16)
    assert blocks.n_free == 1
    assert len(blocks.grow(table, 12)) == 3


@pytest.mark.parametrize("table", [(0,), (1, 2), (7,), (-1,)])
def test_blocks_that_nobody_holds_cannot_be_given_back(table: tuple[int, ...]) -> None:
    blocks = BlockManager(n_blocks=4, block_tokens=4)
    blocks.free(blocks.grow((), 4))
    blocks.grow((), 4)
    blocks.free((0,))
    with pytest.raises(BlockOwnershipError, match="is not handed out"):
        blocks.free(table)


@pytest.mark.parametrize(("n_blocks", "block_tokens"), [(0, 16), (4, 0)])
def test_an_empty_cache_is_refused(n_blocks: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match="kv_cache_tokens"):
        BlockManager(n_blocks, block_tokens)
