"""Waits of ranks that meet: in short slices, so that the end of their generation ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from expertmesh.engine.errors import GenerationLostError

POLL_S = 0.01
"""Between two looks into the store."""
WAIT_SLICE_S = 0.05

T = TypeVar("T")


class Meeting:
    """One rank's waits for the others of a generation.

    Args:
        generation: its number, for errors.
        store: the generation's torch store.
        abandoned: gives the reason as soon as the generation has been given up, else None.
    """

    def __init__(self, generation: int, store: Any, abandoned: Callable[[], str | None]) -> None:
        self.generation = generation
        self.store = store
        self._abandoned = abandoned

    def check(self) -> None:
        """Raises GenerationLostError once the generation has been given up."""
        reason = self._abandoned()
        if reason is not None:
            raise GenerationLostError(self.generation, reason)

    def await_keys(self, keys: Mapping[str, str], timeout_s: float) -> None:
        """Waits until the store has all keys; a blocking `get` would not hear of an end.

        Args:
            keys: each with the name of the member that sets it.

        Raises:
            GenerationLostError: given up, or a member has not set its key within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        missing = dict(keys)
        while missing:
            self.check()
            late = time.monotonic() > deadline_s
            try:
                # One key is asked for at a time, but at the end all are: who is there is not to be named.
                for key in list(missing) if late else [next(iter(missing))]:
                    if self.store.check([key]):
                        del missing[key]
                    elif not late:
                        time.sleep(POLL_S)
            except RuntimeError as error:
                raise GenerationLostError(self.generation, f"the store is gone: {error}") from error
            if late and missing:
                names = ", ".join(missing.values())
                raise GenerationLostError(self.generation, f"{names} not ready within {timeout_s:g} s")

    def leavable(self, build: Callable[[], T]) -> T:
        """The outcome of a call that hears of nothing until its own timeout. Its thread is left
        behind when the generation is given up meanwhile, and drops what the call still brings.

        Raises:
            GenerationLostError: given up.
        """
        built: list[T] = []
        failed: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                built.append(build())
            except BaseException as error:
                failed.append(error)
            done.set()

        threading.Thread(target=run, name=f"meet-{self.generation}", daemon=True).start()
        while not done.wait(WAIT_SLICE_S):
            self.check()
        if failed:
            raise failed[0]
        return built.pop()
