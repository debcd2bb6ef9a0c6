"""How large a router's cache is."""

from __future__ import annotations

import logging

import torch

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.window_blocks import WindowBlocks
from expertmesh.models.cache import CacheSize
from expertmesh.models.spec import ModelSpec

logger = logging.getLogger(__name__)


class CacheTooSmallError(ValueError):
    """`engine.kv_cache_bytes` does not hold what the sequences of one step keep at least."""


def cache_size(
    config: DeploymentConfig, spec: ModelSpec, dtype: torch.dtype
) -> tuple[CacheSize, WindowBlocks]:
    """The blocks of the cache by the configuration, and who hands out those of the windows.

    Raises:
        CacheTooSmallError: the windows of `scheduler.max_running` sequences alone exceed the memory.
    """
    engine, scheduler, layout = config.engine, config.scheduler, spec.cache
    granule = layout.granule_tokens
    block_tokens = -(-engine.block_tokens // granule) * granule
    if block_tokens != engine.block_tokens:
        logger.info("blocks of %d tokens, of which this model's caches need multiples", block_tokens)
    windows = WindowBlocks(
        layout.windows,
        engine.block_tokens,
        max_running=scheduler.max_running,
        max_step_tokens=scheduler.max_step_tokens,
        max_drafts=config.speculative.max_drafts,
    )
    n_blocks = (engine.kv_cache_tokens or 0) // block_tokens
    if engine.kv_cache_tokens is None:
        window_bytes = sum(
            n * windows.block_tokens * layout.window_token_bytes(window, dtype.itemsize)
            for n, window in zip(windows.n_blocks, layout.windows, strict=True)
        )
        left_bytes = engine.kv_cache_bytes - window_bytes
        if left_bytes <= 0:
            raise CacheTooSmallError(
                f"the last tokens of {scheduler.max_running} sequences take {window_bytes} bytes of cache, "
                f"and engine.kv_cache_bytes is {engine.kv_cache_bytes}; raise it "
                "or lower scheduler.max_running"
            )
        n_blocks = left_bytes // max(1, layout.block_bytes(block_tokens, dtype.itemsize))
    return CacheSize(max(1, n_blocks), block_tokens, windows.n_blocks, windows.block_tokens), windows
