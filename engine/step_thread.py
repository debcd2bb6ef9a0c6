"""The thread that steps through generation after generation, on routers and expert hosts alike."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic

import torch

from expertmesh.engine.errors import EngineStoppedError, GenerationLostError
from expertmesh.engine.exchange.header import StepAgreement
from expertmesh.engine.follower import GenerationFollower, LinkT

logger = logging.getLogger(__name__)


class StepThread(Generic[LinkT]):
    """Steps while the live generation is awake; uses no processor time while it is parked.

    Args:
        name: of the thread, for errors and logs.
        has_work: whether a parked generation should be woken.
        step: one step on a generation's link; gives what all ranks agreed on. May raise
            `GenerationLostError`: then the next generation is waited for.
        on_failure: told what ended the thread, on the thread.
    """

    def __init__(
        self,
        name: str,
        follower: GenerationFollower[LinkT],
        *,
        has_work: Callable[[], bool],
        step: Callable[[LinkT], StepAgreement],
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._name = name
        self._follower = follower
        self._has_work = has_work
        self._step = step
        self._on_failure = on_failure
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the step in progress."""
        self._follower.stop()
        self._thread.join(timeout_s)
        self._follower.close(timeout_s)

    def check(self) -> None:
        """Raises what ended the thread, if it has failed."""
        if self._failure is not None:
            raise EngineStoppedError(f"the {self._name} thread died: {self._failure!r}")

    @property
    def ended(self) -> bool:
        """Whether the thread has failed or is stopping."""
        return self._failure is not None or self._follower.stopping

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while (link := self._follower.wait_for_generation()) is not None:
                try:
                    self._serve(link)
                except GenerationLostError as lost:
                    logger.warning("%s", lost)
                    self._follower.lost(lost)
        except BaseException as error:
            logger.exception("the %s thread died", self._name)
            self._failure = error
            self._on_failure(error)

    def _serve(self, link: LinkT) -> None:
        """Steps in one generation until its ranks agree to go over to another, or this member stops."""
        while self._follower.wait_until_awake(self._has_work):
            agreement = None
            while agreement is None or not agreement.parks:
                agreement = self._step(link)
                self._follower.stepped()
                if agreement.successor:
                    self._follower.switch(agreement.successor)
                    return
