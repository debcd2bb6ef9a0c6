"""The banks of experts that an expert host keeps, generation by generation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from expertmesh.actors.reporting import LoadingProgress
from expertmesh.models.expert_reader import Slots
from expertmesh.models.expert_store import Cancelled, ExpertStore
from expertmesh.models.experts import ExpertBank

logger = logging.getLogger(__name__)


class HeldBanks:
    """Keeps a bank while its generation is live or prepared, and beyond when that is lost: the one that
    recovers from the loss needs nearly the same experts.

    Args:
        live_number: the generation that is live here, 0 for none.
        progress: counts what is read.
    """

    def __init__(
        self, store: ExpertStore, live_number: Callable[[], int], progress: LoadingProgress
    ) -> None:
        self._store = store
        self._live_number = live_number
        self._progress = progress
        self._lock = threading.Lock()
        self._banks: dict[int, tuple[ExpertBank, Cancelled]] = {}

    def prepare(self, number: int, slots: Slots, abandoned: Cancelled) -> ExpertBank:
        """The bank of a generation; reads what no kept bank has. Gently, when a generation is live.

        Args:
            abandoned: gives the reason once the generation has been given up.

        Raises:
            CheckpointError: a file cannot be read any more.
            LoadCancelledError: the generation was given up meanwhile.
        """
        started_s = time.monotonic()
        live = self._live_number()
        self._progress.begin()
        before_bytes = self._progress.loaded_bytes
        bank = self._store.bank(
            slots,
            abandoned,
            progress=self._progress,
            background=live != 0,
            before_reading=lambda: self._take(lambda held, _: held != live).clear(),
        )
        with self._lock:
            self._banks[number] = (bank, abandoned)
        logger.info(
            "generation %d: %.1f MiB of experts read in %.2f s, %d experts held",
            number,
            (self._progress.loaded_bytes - before_bytes) / 2**20,
            time.monotonic() - started_s,
            self._store.n_held,
        )
        return bank

    def forget(self) -> None:
        """Drops the banks of generations that were left or given up, unless none is live. Call it from time
        to time."""
        live = self._live_number()
        if not live:
            return
        stale = self._take(lambda held, abandoned: held < live or (held > live and abandoned() is not None))
        if stale:
            # Giving many gigabytes back takes long enough to hold an event loop up.
            threading.Thread(target=stale.clear, name="drop-experts", daemon=True).start()

    def _take(self, stale: Callable[[int, Cancelled], bool]) -> list[ExpertBank]:
        with self._lock:
            numbers = [held for held, (_, abandoned) in self._banks.items() if stale(held, abandoned)]
            return [self._banks.pop(held)[0] for held in numbers]
