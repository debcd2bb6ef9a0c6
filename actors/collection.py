"""Garbage collection of processes that answer requests: what they start with is never looked through again.

torch, Ray and Serve leave a quarter of a million objects. A full collection walks through all of them and
stops every thread for it: a tenth of a second in a router, which every stream would see.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def keep_all() -> None:
    """What is there now is needed for good: no collection looks at it again."""
    gc.freeze()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collects nothing within the block, and keeps all that is there at its end.

    For imports, which make many objects and hardly any garbage.
    """
    gc.disable()
    try:
        yield
    finally:
        keep_all()
        gc.enable()
